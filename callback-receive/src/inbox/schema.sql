-- What makes the names of handles.
CREATE TABLE callback_inbox_key (
    key BLOB NOT NULL
) STRICT;

-- Named handles. Times are microseconds since 1970.
CREATE TABLE callback_expectation (
    handle  BLOB    NOT NULL PRIMARY KEY,
    name    TEXT    NOT NULL UNIQUE,
    expires INTEGER,
    -- 1 if its messages are judged by a key of its own
    own_key INTEGER NOT NULL
) STRICT;

-- One line a message, from its arrival until it is forgotten. A place is never used twice.
CREATE TABLE callback_inbox (
    seq    INTEGER PRIMARY KEY AUTOINCREMENT,
    handle BLOB    NOT NULL,
    name   TEXT    NOT NULL,
    id     TEXT    NOT NULL,
    -- 0 waits, 1 accepted, 2 dead
    state  INTEGER NOT NULL,
    due    INTEGER NOT NULL,
    -- since when it is in this state
    since  INTEGER NOT NULL,
    -- of a dead letter
    reason TEXT,
    -- the message: its attributes as JSON, and its body; of an accepted one, nothing
    head   TEXT,
    body   BLOB,
    UNIQUE (handle, id)
) STRICT;

CREATE INDEX callback_inbox_waiting ON callback_inbox (handle, seq) WHERE state = 0;
CREATE INDEX callback_inbox_accepted ON callback_inbox (since) WHERE state = 1;
CREATE INDEX callback_inbox_dead ON callback_inbox (seq) WHERE state = 2;

-- How far a log was read.
CREATE TABLE callback_inbox_position (
    log    TEXT    NOT NULL PRIMARY KEY,
    offset INTEGER NOT NULL
) STRICT;
