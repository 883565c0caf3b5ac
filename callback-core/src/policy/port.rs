//! Ports on which something else than HTTP listens.

/// Whether the port belongs to a service that takes harm from an HTTP request, or answers what should stay inside.
///
/// The "bad ports" of the Fetch standard (<https://fetch.spec.whatwg.org/#port-blocking>), then databases and cluster
/// managers that browsers, which send from the outside, need not know.
pub(super) fn is_of_another_service(port: u16) -> bool {
    FETCH.binary_search(&port).is_ok() || DATABASES.binary_search(&port).is_ok()
}

#[rustfmt::skip]
const FETCH: [u16; 83] = [
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104,
    109, 110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515,
    526, 530, 531, 532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049,
    3659, 4045, 4190, 5060, 5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

/// SQL Server, Oracle, Docker, etcd (two), `MySQL`, PostgreSQL, Redis, Elasticsearch, Kubelet, memcached, `MongoDB`.
const DATABASES: [u16; 12] = [1433, 1521, 2375, 2379, 2380, 3306, 5432, 6379, 9200, 10250, 11211, 27017];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lists_are_sorted() {
        assert!(FETCH.is_sorted() && DATABASES.is_sorted());
    }

    #[test]
    fn a_web_server_has_its_usual_ports() {
        for port in [80, 443, 3000, 8000, 8080, 8443, 32768, 65535] {
            assert!(!is_of_another_service(port), "{port}");
        }
        for port in [22, 25, 6379] {
            assert!(is_of_another_service(port), "{port}");
        }
    }
}
