//! What a delivery report or an error of librdkafka means. Pure.

use callback_core::{Evidence, Phase, Receipt, SinkError};
use rdkafka::error::RDKafkaErrorCode as Code;

/// The receipt of a place in a log. The offset is -1 where the broker had the message already (`DUPLICATE_SEQUENCE_NUMBER`).
pub(crate) const fn receipt(partition: i32, offset: i64) -> Receipt {
    Receipt::new(Evidence::Offset { partition, offset })
}

/// Why a cluster is out of reach, by the last error that no message had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trouble {
    Authentication = 1,
    Tls,
    Resolve,
    Connect,
}

impl Trouble {
    /// The trouble that an error of the client speaks of.
    pub(crate) const fn of(code: Code) -> Option<Self> {
        match code {
            Code::Authentication | Code::SaslAuthenticationFailed | Code::UnsupportedSASLMechanism => {
                Some(Self::Authentication)
            }
            Code::SSL => Some(Self::Tls),
            Code::Resolve => Some(Self::Resolve),
            Code::BrokerTransportFailure | Code::OperationTimedOut | Code::AllBrokersDown => Some(Self::Connect),
            _ => None,
        }
    }

    pub(crate) const fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Authentication),
            2 => Some(Self::Tls),
            3 => Some(Self::Resolve),
            4 => Some(Self::Connect),
            _ => None,
        }
    }

    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Authentication => "the brokers do not accept our credentials",
            Self::Tls => "the TLS handshake with the brokers fails",
            Self::Resolve => "the names of the brokers are not found",
            Self::Connect => "no broker can be reached",
        }
    }

    fn error(self) -> SinkError {
        match self {
            Self::Authentication => SinkError::unauthorized(self.text()).with_phase(Phase::Connect),
            Self::Tls => SinkError::unavailable(self.text()).with_phase(Phase::Tls),
            Self::Resolve => SinkError::unavailable(self.text()).with_phase(Phase::Resolve),
            Self::Connect => SinkError::unavailable(self.text()).with_phase(Phase::Connect),
        }
    }
}

/// No report came within the attempt's deadline: the message may still arrive.
pub(crate) fn no_report(trouble: Option<Trouble>) -> SinkError {
    SinkError::timed_out(match trouble {
        Some(trouble) => format!("no delivery report in time; {}", trouble.text()),
        None => "no delivery report in time".to_owned(),
    })
}

/// What an error means for a record.
///
/// `alone` says that the record travelled in no batch with others, `trouble` why the cluster is out of reach.
pub(crate) fn judge(code: Code, alone: bool, trouble: Option<Trouble>) -> SinkError {
    let error = match code {
        Code::MessageTimedOut | Code::OperationTimedOut => {
            return trouble.map_or_else(|| no_report(None), Trouble::error);
        }
        Code::InvalidMessage
        | Code::InvalidMessageSize
        | Code::BadMessage
        | Code::InvalidArgument
        | Code::InvalidRecord
        | Code::InvalidTimestamp
        | Code::InvalidTopic
        | Code::PolicyViolation
        | Code::UnsupportedCompressionType
        | Code::UnsupportedForMessageFormat => SinkError::refused(code),
        Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition | Code::UnknownTopicId => {
            SinkError::unroutable(code)
        }
        Code::Authentication
        | Code::SaslAuthenticationFailed
        | Code::UnsupportedSASLMechanism
        | Code::IllegalSASLState
        | Code::SecurityDisabled
        | Code::TopicAuthorizationFailed
        | Code::ClusterAuthorizationFailed
        | Code::TransactionalIdAuthorizationFailed => SinkError::unauthorized(code),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge if alone => SinkError::too_large(code),
        Code::MessageSizeTooLarge | Code::MessageBatchTooLarge => SinkError::unavailable(
            "a batch of records is too large for the topic: set batch.size below its max.message.bytes",
        ),
        Code::QueueFull | Code::ThrottlingQuotaExceeded => SinkError::throttled(code),
        _ => SinkError::unavailable(code),
    };
    error.with_phase(Phase::Answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use callback_core::ErrorKind::{
        self, Refused, Throttled, TimedOut, TooLarge, Unauthorized, Unavailable, Unroutable,
    };

    #[track_caller]
    fn check(code: Code, kind: ErrorKind) {
        assert_eq!(judge(code, true, None).kind(), kind, "{code:?}");
    }

    #[test]
    fn every_code_means_one_thing() {
        let table: [(ErrorKind, &[Code]); 7] = [
            (
                Refused,
                &[
                    Code::InvalidMessage,
                    Code::InvalidMessageSize,
                    Code::BadMessage,
                    Code::InvalidArgument,
                    Code::InvalidRecord,
                    Code::InvalidTimestamp,
                    Code::InvalidTopic,
                    Code::PolicyViolation,
                    Code::UnsupportedCompressionType,
                    Code::UnsupportedForMessageFormat,
                ],
            ),
            (
                Unroutable,
                &[Code::UnknownTopic, Code::UnknownPartition, Code::UnknownTopicOrPartition, Code::UnknownTopicId],
            ),
            (
                Unauthorized,
                &[
                    Code::Authentication,
                    Code::SaslAuthenticationFailed,
                    Code::UnsupportedSASLMechanism,
                    Code::IllegalSASLState,
                    Code::SecurityDisabled,
                    Code::TopicAuthorizationFailed,
                    Code::ClusterAuthorizationFailed,
                    Code::TransactionalIdAuthorizationFailed,
                ],
            ),
            (TooLarge, &[Code::MessageSizeTooLarge, Code::MessageBatchTooLarge]),
            (Throttled, &[Code::QueueFull, Code::ThrottlingQuotaExceeded]),
            (TimedOut, &[Code::MessageTimedOut, Code::OperationTimedOut]),
            (
                Unavailable,
                &[
                    Code::LeaderNotAvailable,
                    Code::NotLeaderForPartition,
                    Code::RequestTimedOut,
                    Code::BrokerNotAvailable,
                    Code::ReplicaNotAvailable,
                    Code::NetworkException,
                    Code::NotEnoughReplicas,
                    Code::NotEnoughReplicasAfterAppend,
                    Code::ISRInsufficient,
                    Code::KafkaStorageError,
                    Code::FencedLeaderEpoch,
                    Code::UnknownLeaderEpoch,
                    Code::UnsupportedVersion,
                    Code::UnsupportedFeature,
                    Code::InvalidRequest,
                    Code::InvalidRequiredAcks,
                    Code::BrokerTransportFailure,
                    Code::AllBrokersDown,
                    Code::Resolve,
                    Code::SSL,
                    Code::PurgeQueue,
                    Code::PurgeInflight,
                    Code::BrokerDestroy,
                    Code::DestroyBroker,
                    Code::Fail,
                    Code::Fatal,
                    Code::Fenced,
                    Code::GaplessGuarantee,
                    Code::InvalidDifferentRecord,
                    Code::OutOfOrderSequenceNumber,
                    Code::DuplicateSequenceNumber,
                    Code::UnknownProducerId,
                    Code::InvalidProducerEpoch,
                    Code::ProducerFenced,
                    Code::Unknown,
                    Code::UnknownBroker,
                ],
            ),
        ];
        for (kind, codes) in table {
            for code in codes {
                check(*code, kind);
            }
        }
    }

    #[test]
    fn a_refused_batch_does_not_condemn_a_record_that_may_have_been_innocent() {
        assert_eq!(judge(Code::MessageSizeTooLarge, false, None).kind(), Unavailable);
        assert_eq!(judge(Code::MessageBatchTooLarge, false, None).kind(), Unavailable);
    }

    #[test]
    fn a_record_that_was_given_up_has_the_trouble_of_its_cluster() {
        let table = [
            (Code::Authentication, Unauthorized, Phase::Connect),
            (Code::SSL, Unavailable, Phase::Tls),
            (Code::Resolve, Unavailable, Phase::Resolve),
            (Code::AllBrokersDown, Unavailable, Phase::Connect),
            (Code::BrokerTransportFailure, Unavailable, Phase::Connect),
        ];
        for (code, kind, phase) in table {
            let trouble = Trouble::of(code).expect("a trouble");
            let error = judge(Code::MessageTimedOut, true, Some(trouble));
            assert_eq!((error.kind(), error.phase()), (kind, Some(phase)), "{code:?}");
            assert_eq!(Trouble::from_number(trouble as u8), Some(trouble));
            // Without a report nothing is known, whatever the trouble.
            assert_eq!(no_report(Some(trouble)).kind(), TimedOut);
        }
        assert_eq!(Trouble::of(Code::PartitionEOF), None);
        assert_eq!(Trouble::from_number(0), None);
    }

    #[test]
    fn a_receipt_may_have_no_offset() {
        assert_eq!(receipt(3, -1).evidence(), &Evidence::Offset { partition: 3, offset: -1 });
    }
}
