//! What the store promises, against real files.

mod close;
mod failure;
mod files;
mod group;
mod lock;
mod log;
mod lost;
mod migrations;
mod notes;
mod others;
