-- One line a task or event, from its acceptance to its end. Times are microseconds since 1970.
CREATE TABLE callback_outbox (
    seq         INTEGER PRIMARY KEY,
    id          BLOB    NOT NULL UNIQUE,
    -- 0 accepted, 1 started, 2 deferred, 3 delivering; 10 completed, 11 delivered, 12 dead, 13 cancelled, 14 expired
    stage       INTEGER NOT NULL,
    -- 1 while a process has it in hand
    held        INTEGER NOT NULL,
    -- the claim that it is in hand by, if nothing was stored of it since
    claim       INTEGER,
    -- grows with each claim: what carries an older one is not stored
    token       INTEGER NOT NULL,
    due         INTEGER NOT NULL,
    attempts    INTEGER NOT NULL,
    starts      INTEGER NOT NULL,
    accepted_at INTEGER NOT NULL,
    first_due   INTEGER NOT NULL,
    expires     INTEGER NOT NULL,
    ended_at    INTEGER,
    -- of the last failed attempt
    kind        TEXT,
    worker      TEXT,
    owner       TEXT,
    -- text, or sealed: a BLOB; so are work, result and reason, and a body is sealed with them
    dsn         ANY,
    destination TEXT,
    -- a digest of owner and destination
    lane        INTEGER,
    -- a digest of the Dsn
    address     BLOB,
    -- a digest of Dsn and ordering key; the place among those of this key, for as long as it holds back the others
    order_key   BLOB,
    turn        INTEGER,
    -- 1 if it holds them back when it is dead, too
    stops       INTEGER,
    -- digests of worker, owner and idempotency key, and of the request
    idempotency BLOB,
    request     BLOB,
    -- the request, and the message: what belongs to each as JSON, and its body
    work        ANY,
    work_body   BLOB,
    result      ANY,
    result_body BLOB,
    -- of an event for a subscription: both, in place of Dsn and message; and its number, where that is in order
    payload      BLOB,
    subscription BLOB,
    sequence     INTEGER
) STRICT;

CREATE INDEX callback_outbox_pending ON callback_outbox (held, due) WHERE stage < 10;
CREATE INDEX callback_outbox_worker ON callback_outbox (worker, due) WHERE stage <= 1 AND held = 0;
CREATE INDEX callback_outbox_lane ON callback_outbox (lane, due, first_due) WHERE stage = 3 AND held = 0;
CREATE INDEX callback_outbox_order ON callback_outbox (order_key, turn) WHERE turn IS NOT NULL;
-- What is held never enters it.
CREATE INDEX callback_outbox_address ON callback_outbox (address) WHERE stage = 3 AND held = 0;
CREATE INDEX callback_outbox_expires ON callback_outbox (expires) WHERE stage < 10 AND expires < 9223372036854775807;
-- what is deleted when it is old: not what is dead
CREATE INDEX callback_outbox_ended ON callback_outbox (ended_at)
    WHERE stage >= 10 AND stage <> 12 AND idempotency IS NULL;
CREATE INDEX callback_outbox_ended_keyed ON callback_outbox (ended_at)
    WHERE stage >= 10 AND stage <> 12 AND idempotency IS NOT NULL;
CREATE UNIQUE INDEX callback_outbox_idempotency ON callback_outbox (idempotency) WHERE idempotency IS NOT NULL;
CREATE INDEX callback_outbox_dead ON callback_outbox (ended_at, id) WHERE stage = 12;
-- Only deliveries of events to subscriptions are in these.
CREATE INDEX callback_outbox_payload ON callback_outbox (payload) WHERE payload IS NOT NULL;
CREATE INDEX callback_outbox_subscription ON callback_outbox (subscription) WHERE subscription IS NOT NULL;

CREATE TABLE callback_attempt (
    id     BLOB    NOT NULL,
    number INTEGER NOT NULL,
    time   INTEGER NOT NULL,
    took   INTEGER NOT NULL,
    kind   TEXT    NOT NULL,
    phase  TEXT,
    status INTEGER,
    reason ANY     NOT NULL
) STRICT;

CREATE INDEX callback_attempt_id ON callback_attempt (id);

-- Lanes whose breaker is open.
CREATE TABLE callback_breaker (
    lane        INTEGER PRIMARY KEY,
    owner       TEXT,
    destination TEXT    NOT NULL,
    times       INTEGER NOT NULL,
    until       INTEGER NOT NULL
) STRICT;

CREATE INDEX callback_breaker_until ON callback_breaker (until);

-- Destinations that come to a process, found by a digest of the Dsn.
CREATE TABLE callback_attachment (
    address BLOB    NOT NULL PRIMARY KEY,
    -- tells it from others of this Dsn
    id      BLOB    NOT NULL,
    -- 1 while a process has it attached
    held    INTEGER NOT NULL,
    -- until when what waits for it is kept, if nobody has it attached
    until   INTEGER NOT NULL,
    -- digests of what admits who comes back: the secret, and the one before until this was used
    secret  BLOB,
    former  BLOB
) STRICT, WITHOUT ROWID;

CREATE INDEX callback_attachment_until ON callback_attachment (until);

-- Destinations that let us send to them.
CREATE TABLE callback_consent (
    destination TEXT    NOT NULL PRIMARY KEY,
    -- how many requests; any number if NULL
    per_minute  INTEGER,
    until       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX callback_consent_until ON callback_consent (until);

-- The keys that values here are sealed with, each with a proof: nothing, sealed.
CREATE TABLE callback_seal (
    key   TEXT NOT NULL PRIMARY KEY,
    proof BLOB NOT NULL
) STRICT;

-- One line a subscription.
CREATE TABLE callback_subscription (
    seq         INTEGER PRIMARY KEY,
    id          BLOB    NOT NULL UNIQUE,
    -- the last 62 bits of the id: what tells its deliveries and its ordering keys from others
    number      INTEGER NOT NULL,
    -- grows with each change by who has read it
    revision    INTEGER NOT NULL,
    owner       TEXT,
    -- of its deliveries
    destination TEXT    NOT NULL,
    lane        INTEGER NOT NULL,
    address     BLOB    NOT NULL,
    once        INTEGER NOT NULL,
    ordered     INTEGER NOT NULL,
    stops       INTEGER NOT NULL,
    active      INTEGER NOT NULL,
    -- 1 when it has got the one event that it may get
    spent       INTEGER NOT NULL,
    -- 1 cancelled, 2 completed, 3 gone, 4 expired
    ended       INTEGER,
    ended_at    INTEGER,
    created_at  INTEGER NOT NULL,
    expires     INTEGER NOT NULL,
    -- of its last ordered delivery
    sequence    INTEGER NOT NULL,
    -- what may be secret, Dsn included: text, or sealed
    detail      ANY     NOT NULL
) STRICT;

CREATE INDEX callback_subscription_owner ON callback_subscription (owner, id);
-- Those of an owner that count.
CREATE INDEX callback_subscription_live ON callback_subscription (owner, expires, ended) WHERE ended IS NULL;
CREATE INDEX callback_subscription_address ON callback_subscription (address) WHERE ended IS NULL;
CREATE INDEX callback_subscription_spent ON callback_subscription (id) WHERE spent AND ended IS NULL;
CREATE INDEX callback_subscription_ended ON callback_subscription (ended_at) WHERE ended IS NOT NULL;
CREATE INDEX callback_subscription_expires ON callback_subscription (expires)
    WHERE ended IS NULL AND expires < 9223372036854775807;

-- What subscriptions that have not ended want: a type and a service, empty where any is wanted.
CREATE TABLE callback_interest (
    event        TEXT NOT NULL,
    service      TEXT NOT NULL,
    subscription BLOB NOT NULL,
    PRIMARY KEY (event, service, subscription)
) STRICT, WITHOUT ROWID;

CREATE INDEX callback_interest_subscription ON callback_interest (subscription);

-- One line an event, however many get it: what belongs to it as JSON, and its body.
CREATE TABLE callback_payload (
    seq  INTEGER PRIMARY KEY,
    id   BLOB    NOT NULL UNIQUE,
    head ANY     NOT NULL,
    body BLOB    NOT NULL
) STRICT;
