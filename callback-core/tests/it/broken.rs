//! Each clause of the kit fails on a sink that breaks it, and on no other.

mod model;

use callback_core::conformance::{Clause, Unproved, clauses};
use model::{FarEnd, with_defect};
use std::{collections::BTreeSet, thread};

/// The names of the clauses that the sink with this defect does not pass.
fn broken_by(defect: Option<Defect>) -> BTreeSet<&'static str> {
    let clauses = clauses::<FarEnd>();
    thread::scope(|scope| {
        let check = |clause| scope.spawn(move || with_defect(defect, || Clause::check(clause)));
        let checks: Vec<_> = clauses.iter().map(|clause| (clause.name(), check(clause))).collect();
        let broken = checks.into_iter().filter_map(|(name, check)| match check.join().expect("no panic") {
            Ok(()) => None,
            Err(Unproved::Broken(_)) => Some(name),
            Err(other) => panic!("{name}: {other}"),
        });
        broken.collect()
    })
}

#[test]
fn a_sink_without_a_defect_passes_every_clause() {
    assert_eq!(broken_by(None), BTreeSet::new());
}

#[test]
fn each_clause_is_broken_by_some_defect() {
    let shown: BTreeSet<_> = DEFECTS.iter().flat_map(|(_, clauses)| *clauses).copied().collect();
    let all: BTreeSet<_> = clauses::<FarEnd>().iter().map(|clause| clause.name()).collect();
    assert_eq!(shown, all);
}

/// One test a defect: the sink that has it breaks these clauses, and passes the others.
macro_rules! defects {
    ($($(#[$what:meta])* $defect:ident $test:ident [$($clause:ident)*])*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        enum Defect { $($(#[$what])* $defect),* }

        const DEFECTS: &[(Defect, &[&str])] = &[$((Defect::$defect, &[$(stringify!($clause)),*])),*];

        $(
            #[test]
            fn $test() {
                assert_eq!(broken_by(Some(Defect::$defect)), BTreeSet::from([$(stringify!($clause)),*]));
            }
        )*
    };
}

defects! {
    /// What is sent waits in the process until the next message comes.
    AnswersBeforeSending answering_before_sending [
        a_delivered_message_is_at_the_far_end a_failed_delivery_is_not_repeated the_signature_is_copied
        the_attributes_arrive an_empty_body_arrives_unchanged a_unicode_body_arrives_unchanged
        a_binary_body_arrives_unchanged a_large_body_arrives_unchanged hundreds_of_deliveries_at_once_arrive_once
        dropped_deliveries_leave_the_sink_usable a_deadline_that_is_over_times_out an_outage_is_temporary_and_heals
        a_broken_connection_is_mended
    ]
    /// Every third message is lost, and acknowledged.
    LosesEveryThird losing_every_third [
        a_delivered_message_is_at_the_far_end hundreds_of_deliveries_at_once_arrive_once
        dropped_deliveries_leave_the_sink_usable a_broken_connection_is_mended
    ]
    /// Every message is sent twice.
    SendsTwice sending_twice [
        a_delivered_message_is_at_the_far_end a_failed_delivery_is_not_repeated an_empty_body_arrives_unchanged
        a_unicode_body_arrives_unchanged a_binary_body_arrives_unchanged a_large_body_arrives_unchanged
        hundreds_of_deliveries_at_once_arrive_once dropped_deliveries_leave_the_sink_usable
        a_deadline_that_is_over_times_out an_outage_is_temporary_and_heals a_broken_connection_is_mended
    ]
    /// A second attempt has an id of its own.
    NewIdForRetry making_a_new_id_for_a_retry [a_retry_carries_the_same_message]
    /// A message without an answer is sent again.
    RepeatsUnanswered repeating_what_was_not_answered [
        a_failed_delivery_is_not_repeated dropped_deliveries_leave_the_sink_usable
    ]
    /// The signature stays behind.
    DropsSignature dropping_the_signature [the_signature_is_copied]
    /// The sink signs by itself.
    SignsByItself signing_by_itself [the_signature_is_copied]
    /// An attribute stays behind.
    DropsSubject dropping_an_attribute [the_attributes_arrive]
    /// The message's own headers stay behind.
    DropsHeaders dropping_headers [the_attributes_arrive]
    /// An empty body becomes `null`.
    EmptyToNull sending_null_for_nothing [an_empty_body_arrives_unchanged]
    /// White space around a body is cut off.
    TrimsBody trimming_bodies [a_unicode_body_arrives_unchanged]
    /// Bodies are taken for text.
    BodyAsText taking_bodies_for_text [a_binary_body_arrives_unchanged a_large_body_arrives_unchanged]
    /// Bodies end after 64 KiB.
    CutsBody cutting_long_bodies [a_large_body_arrives_unchanged]
    /// The hundred-and-first delivery at once fails.
    LimitsInFlight failing_beyond_a_hundred_at_once [hundreds_of_deliveries_at_once_arrive_once]
    /// What was dropped counts as in flight for ever.
    CountsDropped counting_what_was_dropped [dropped_deliveries_leave_the_sink_usable]
    /// What was dropped before its answer keeps its place on the connection for ever.
    KeepsPlaces keeping_the_places_of_what_was_dropped [dropped_deliveries_leave_the_sink_usable]
    /// No deadline ends a delivery, nor one that was over before.
    IgnoresDeadline ignoring_the_deadline [
        a_stalled_delivery_times_out a_deadline_that_is_over_times_out a_failed_delivery_is_not_repeated
        close_settles_what_is_in_flight no_secret_is_printed no_secret_is_logged
    ]
    /// A delivery waits for the one before, and its deadline counts from then.
    OneAfterTheOther delivering_one_after_the_other [a_stalled_delivery_times_out]
    /// A deadline is told as an outage.
    DeadlineAsOutage telling_a_deadline_as_an_outage [a_stalled_delivery_times_out]
    /// No defect: connecting has a limit of its own, and what it ends is told as an outage.
    LimitsConnecting limiting_the_time_to_connect []
    /// That the far end says nothing when it is connected to is told as final.
    StalledConnectAsRefusal telling_a_stalled_connect_as_a_refusal [a_stalled_delivery_times_out]
    /// A deadline that was over before is taken for none.
    ForgetsOldDeadline taking_an_old_deadline_for_none [a_deadline_that_is_over_times_out]
    /// An outage is told as final.
    OutageAsRefusal telling_an_outage_as_a_refusal [an_outage_is_temporary_and_heals]
    /// After an outage the sink gives up.
    GivesUp giving_up_after_an_outage [an_outage_is_temporary_and_heals]
    /// A connection that broke is told as final.
    DisconnectAsRefusal telling_a_disconnect_as_a_refusal [a_broken_connection_is_mended]
    /// What a broken connection carried is lost, and acknowledged.
    DisconnectAsSuccess acknowledging_what_a_disconnect_lost [a_broken_connection_is_mended]
    /// A broken connection is used on.
    NeverReconnects never_connecting_again [a_broken_connection_is_mended]
    /// A refusal is told as temporary.
    RefusalAsOutage telling_a_refusal_as_an_outage [a_refusal_is_told]
    /// A refusal is not looked at.
    RefusalAsSuccess acknowledging_what_was_refused [a_refusal_is_told]
    /// Throttling is told as an outage.
    ThrottleAsOutage telling_throttling_as_an_outage [throttling_is_told]
    /// The time to wait is not looked at.
    DropsWait dropping_the_time_to_wait [the_time_to_wait_is_passed_on]
    /// The scheme has upper-case letters.
    UpperCaseScheme naming_a_scheme_in_upper_case [the_sink_serves_its_dsn]
    /// `check` refuses every Dsn.
    RefusesOwnDsn refusing_the_dsn_that_it_delivers_to [
        the_sink_serves_its_dsn check_asks_nobody an_unknown_parameter_is_named a_forbidden_dsn_is_refused
        a_forbidden_address_is_not_dialled
    ]
    /// `check` looks at the far end.
    CheckAsksFarEnd asking_the_far_end_in_check [check_asks_nobody]
    /// `check` needs a runtime.
    CheckNeedsRuntime needing_a_runtime_in_check [
        the_sink_serves_its_dsn check_asks_nobody a_foreign_scheme_is_an_error an_unknown_parameter_is_named
    ]
    /// `check` sends a message to try.
    CheckSends sending_in_check [
        check_asks_nobody a_forbidden_dsn_is_refused a_forbidden_address_is_not_dialled
    ]
    /// `check` does not look at the scheme.
    ChecksNoScheme checking_no_scheme [a_foreign_scheme_is_an_error]
    /// A foreign scheme is told as temporary by `deliver`.
    ForeignIsTemporary telling_a_foreign_scheme_as_temporary [a_foreign_scheme_is_an_error]
    /// Unknown parameters are passed over.
    IgnoresParameters ignoring_parameters [an_unknown_parameter_is_named]
    /// The error about a parameter repeats its value.
    RepeatsValue repeating_a_parameters_value [an_unknown_parameter_is_named]
    /// The policy is not asked in `check`.
    NoPolicyInCheck asking_no_policy_in_check [a_forbidden_dsn_is_refused]
    /// The policy is asked in `check` alone.
    NoPolicyInDeliver asking_no_policy_in_deliver [a_forbidden_dsn_is_refused a_forbidden_address_is_not_dialled]
    /// The policy is not asked for what a name resolves to.
    NoPolicyAtConnect asking_no_policy_at_connect [a_forbidden_address_is_not_dialled]
    /// The policy is asked when there is a connection.
    ConnectsBeforePolicy connecting_before_the_policy_is_asked [a_forbidden_address_is_not_dialled]
    /// Closing a second time is an error.
    ClosesOnce failing_to_close_twice [close_is_idempotent]
    /// A closed sink delivers.
    DeliversWhenClosed delivering_when_closed [after_close_nothing_is_delivered]
    /// That the sink is closed is told as final.
    ClosedAsRefusal telling_a_closed_sink_as_a_refusal [after_close_nothing_is_delivered]
    /// `close` waits for nothing.
    ClosesWithoutWaiting closing_without_waiting [close_settles_what_is_in_flight]
    /// The sink's `Debug` shows the password.
    PrintsPassword printing_the_password [no_secret_is_printed]
    /// Errors show the Dsn with its secrets.
    PrintsDsn printing_the_dsn [no_secret_is_printed]
    /// The cause of a refusal shows the body.
    PrintsBody printing_the_body [no_secret_is_printed]
    /// An event holds the body.
    LogsBody logging_the_body [no_secret_is_logged]
    /// A span holds the Dsn with its secrets.
    LogsDsn logging_the_dsn_in_a_span [no_secret_is_logged]
    /// The debug form of an outage shows a header.
    PrintsHeader printing_a_header [no_secret_is_printed]
}
