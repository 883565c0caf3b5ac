//! The engine as its users see it.

mod paused_time;
