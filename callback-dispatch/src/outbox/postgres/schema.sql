-- The processes that may have something in hand, each for as long as it says so, by this database's clock.
CREATE TABLE callback_process (
    id          BIGINT      GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    alive_until TIMESTAMPTZ NOT NULL
);

-- One line a task or event, from its acceptance to its end. Times are microseconds since 1970.
CREATE TABLE callback_outbox (
    seq         BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          UUID    NOT NULL UNIQUE,
    -- 0 accepted, 1 started, 2 deferred, 3 delivering; 10 completed, 11 delivered, 12 dead, 13 cancelled, 14 expired
    stage       INTEGER NOT NULL,
    -- the process that has it in hand
    holder      BIGINT,
    -- the claim that it is in hand by, if nothing was stored of it since
    claim       BIGINT,
    -- grows with each claim: what carries an older one is not stored
    token       BIGINT  NOT NULL,
    due         BIGINT  NOT NULL,
    attempts    BIGINT  NOT NULL,
    starts      BIGINT  NOT NULL,
    accepted_at BIGINT  NOT NULL,
    first_due   BIGINT  NOT NULL,
    expires     BIGINT  NOT NULL,
    ended_at    BIGINT,
    -- of the last failed attempt
    kind        TEXT,
    worker      TEXT,
    owner       TEXT,
    -- text in UTF-8, or sealed; so are work, result and reason, and a body is sealed with them
    dsn         BYTEA,
    destination TEXT,
    -- a digest of owner and destination
    lane        BIGINT,
    -- a digest of the Dsn
    address     BYTEA,
    -- a digest of Dsn and ordering key; the place among those of this key, for as long as it holds back the others
    order_key   BYTEA,
    turn        BIGINT,
    -- true if it holds them back when it is dead, too
    stops       BOOLEAN,
    -- digests of worker, owner and idempotency key, and of the request
    idempotency BYTEA,
    request     BYTEA,
    -- the request, and the message: what belongs to each as JSON, and its body
    work        BYTEA,
    work_body   BYTEA,
    result      BYTEA,
    result_body BYTEA,
    -- of an event for a subscription: both, in place of Dsn and message; and its number, where that is in order
    payload      UUID,
    subscription UUID,
    sequence     BIGINT
-- Every line is written a few times; what that leaves in the indexes is cleared away long before a fifth is dead.
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_analyze_scale_factor = 0.05);

CREATE INDEX callback_outbox_pending ON callback_outbox (due, seq) WHERE stage < 10 AND holder IS NULL;
CREATE INDEX callback_outbox_worker ON callback_outbox (worker, due) WHERE stage <= 1 AND holder IS NULL;
CREATE INDEX callback_outbox_lane ON callback_outbox (lane, due, first_due) WHERE stage = 3 AND holder IS NULL;
CREATE INDEX callback_outbox_order ON callback_outbox (order_key, turn) WHERE turn IS NOT NULL;
CREATE INDEX callback_outbox_held ON callback_outbox (holder) WHERE stage < 10 AND holder IS NOT NULL;
CREATE INDEX callback_outbox_address ON callback_outbox (address)
    WHERE stage = 3 AND holder IS NULL AND address IS NOT NULL;
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
    seq    BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id     UUID   NOT NULL,
    number BIGINT NOT NULL,
    time   BIGINT NOT NULL,
    took   BIGINT NOT NULL,
    kind   TEXT   NOT NULL,
    phase  TEXT,
    status BIGINT,
    reason BYTEA  NOT NULL
);

CREATE INDEX callback_attempt_id ON callback_attempt (id);

-- Lanes whose breaker is open.
CREATE TABLE callback_breaker (
    lane        BIGINT PRIMARY KEY,
    owner       TEXT,
    destination TEXT   NOT NULL,
    times       BIGINT NOT NULL,
    until       BIGINT NOT NULL
);

CREATE INDEX callback_breaker_until ON callback_breaker (until);

-- Destinations that come to a process, found by a digest of the Dsn.
CREATE TABLE callback_attachment (
    address BYTEA  PRIMARY KEY,
    -- tells it from others of this Dsn
    id      UUID   NOT NULL,
    -- the process that has it attached, if that lives
    holder  BIGINT,
    -- until when what waits for it is kept, if nobody has it attached
    until   BIGINT NOT NULL,
    -- digests of what admits who comes back: the secret, and the one before until this was used
    secret  BYTEA,
    former  BYTEA
);

CREATE INDEX callback_attachment_until ON callback_attachment (until);

-- Destinations that let us send to them.
CREATE TABLE callback_consent (
    destination TEXT   PRIMARY KEY,
    -- how many requests; any number if NULL
    per_minute  BIGINT,
    until       BIGINT NOT NULL
);

CREATE INDEX callback_consent_until ON callback_consent (until);

-- The keys that values here are sealed with, each with a proof: nothing, sealed.
CREATE TABLE callback_seal (
    key   TEXT  PRIMARY KEY,
    proof BYTEA NOT NULL
);

-- One line a subscription.
CREATE TABLE callback_subscription (
    seq         BIGINT  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id          UUID    NOT NULL UNIQUE,
    -- the last 62 bits of the id: what tells its deliveries and its ordering keys from others
    number      BIGINT  NOT NULL,
    -- grows with each change by who has read it
    revision    BIGINT  NOT NULL,
    owner       TEXT,
    -- of its deliveries
    destination TEXT    NOT NULL,
    lane        BIGINT  NOT NULL,
    address     BYTEA   NOT NULL,
    once        BOOLEAN NOT NULL,
    ordered     BOOLEAN NOT NULL,
    stops       BOOLEAN NOT NULL,
    active      BOOLEAN NOT NULL,
    -- true when it has got the one event that it may get
    spent       BOOLEAN NOT NULL,
    -- 1 cancelled, 2 completed, 3 gone, 4 expired
    ended       BIGINT,
    ended_at    BIGINT,
    created_at  BIGINT  NOT NULL,
    expires     BIGINT  NOT NULL,
    -- of its last ordered delivery
    sequence    BIGINT  NOT NULL,
    -- what may be secret, Dsn included: text in UTF-8, or sealed
    detail      BYTEA   NOT NULL
);

CREATE INDEX callback_subscription_owner ON callback_subscription (owner, id);
-- Those of an owner that count.
CREATE INDEX callback_subscription_live ON callback_subscription (owner, expires) WHERE ended IS NULL;
CREATE INDEX callback_subscription_address ON callback_subscription (address) WHERE ended IS NULL;
CREATE INDEX callback_subscription_spent ON callback_subscription (id) WHERE spent AND ended IS NULL;
CREATE INDEX callback_subscription_ended ON callback_subscription (ended_at) WHERE ended IS NOT NULL;
CREATE INDEX callback_subscription_expires ON callback_subscription (expires)
    WHERE ended IS NULL AND expires < 9223372036854775807;

-- What subscriptions that have not ended want: a type and a service, empty where any is wanted.
CREATE TABLE callback_interest (
    event        TEXT COLLATE "C" NOT NULL,
    service      TEXT COLLATE "C" NOT NULL,
    subscription UUID             NOT NULL,
    PRIMARY KEY (event, service, subscription)
);

CREATE INDEX callback_interest_subscription ON callback_interest (subscription);

-- One line an event, however many get it: what belongs to it as JSON, and its body.
CREATE TABLE callback_payload (
    seq  BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id   UUID   NOT NULL UNIQUE,
    head BYTEA  NOT NULL,
    body BYTEA  NOT NULL
);
