//! What the partitions of a topic are called in an inbox. Pure.

/// One topic of one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Log {
    cluster: Option<String>,
    topic: String,
}

impl Log {
    pub(super) const fn new(cluster: Option<String>, topic: String) -> Self {
        Self { cluster, topic }
    }

    pub(super) fn topic(&self) -> &str {
        &self.topic
    }

    /// Neither a cluster's name nor a topic's has a slash.
    fn prefix(&self) -> String {
        format!("kafka://{}/{}/", self.cluster.as_deref().unwrap_or_default(), self.topic)
    }

    /// The name of a partition: `kafka://cluster/topic/0`.
    pub(super) fn name(&self, partition: i32) -> String {
        format!("{}{partition}", self.prefix())
    }

    /// Which partition of this topic the name is of.
    fn partition(&self, name: &str) -> Option<i32> {
        name.strip_prefix(&self.prefix())?.parse().ok()
    }

    /// The positions among these that are of this topic.
    pub(super) fn positions(&self, stored: &[(String, i64)]) -> Vec<(i32, i64)> {
        stored.iter().filter_map(|(name, offset)| Some((self.partition(name)?, *offset))).collect()
    }

    /// The positions that partitions begin with which have none; `ends` has the end of each.
    ///
    /// A topic that was never read is read from its end. A partition that a known topic has got since then is read whole.
    pub(super) fn begin(&self, stored: &[(String, i64)], ends: impl Iterator<Item = (i32, i64)>) -> Vec<(String, i64)> {
        let known = self.positions(stored);
        ends.filter(|(partition, _)| known.iter().all(|(other, _)| other != partition))
            .map(|(partition, end)| (self.name(partition), if known.is_empty() { end - 1 } else { -1 }))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stored: &[(&str, i64)], ends: &[(i32, i64)], expected: &[(&str, i64)]) {
        let own = |list: &[(&str, i64)]| list.iter().map(|(name, at)| ((*name).to_owned(), *at)).collect::<Vec<_>>();
        let log = Log::new(None, "orders".into());
        assert_eq!(log.begin(&own(stored), ends.iter().copied()), own(expected));
    }

    #[test]
    fn a_topic_begins_at_its_end_and_a_partition_that_came_later_at_its_beginning() {
        check(&[], &[(0, 0), (1, 17)], &[("kafka:///orders/0", -1), ("kafka:///orders/1", 16)]);
        check(&[("kafka:///orders/0", 3)], &[(0, 9), (1, 17)], &[("kafka:///orders/1", -1)]);
        check(&[("kafka:///orders/0", 3)], &[(0, 9)], &[]);
        // Another topic, and another cluster.
        let others = [("kafka:///orders.done/0", 3), ("kafka://b/orders/0", 4), ("kafka:///orders/x", 5)];
        check(&others, &[(0, 9)], &[("kafka:///orders/0", 8)]);
    }

    #[test]
    fn positions_are_found_by_their_names() {
        let log = Log::new(Some("b".into()), "orders".into());
        let stored = [(log.name(12), 7), ("kafka:///orders/1".into(), 8)];
        assert_eq!(log.positions(&stored), [(12, 7)]);
    }
}
