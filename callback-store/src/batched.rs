use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// SQLite's limit on the parameters of one statement, `SQLITE_MAX_VARIABLE_NUMBER`.
const MAX_PARAMETERS: usize = 32_766;

const SIZES: [usize; 5] = [256, 64, 16, 4, 1];

/// Multi-row statements of fixed sizes, so that each stays prepared.
///
/// The sizes are 1, 4, 16, 64 and 256 rows, without those that would take more than 32,766 parameters.
#[derive(Clone, Debug)]
pub struct Batched {
    /// Largest first; the last takes one row.
    statements: Vec<(usize, SqlStr)>,
}

impl Batched {
    /// Joins `head`, as many `row`s as a size says, with commas, and `tail`.
    ///
    /// Every `?` in `row` is a parameter without a number. The text is trusted: nothing in it may come from a user.
    ///
    /// # Examples
    ///
    /// ```
    /// use callback_store::Batched;
    ///
    /// let insert = Batched::new("INSERT INTO note (id, text) VALUES ", "(?, ?)", " ON CONFLICT DO NOTHING");
    /// let rows = ["a"; 6];
    /// let sizes: Vec<_> = insert.split(&rows).map(|(_, rows)| rows.len()).collect();
    /// assert_eq!(sizes, [4, 1, 1]);
    /// ```
    #[must_use]
    pub fn new(head: &str, row: &str, tail: &str) -> Self {
        let parameters = row.matches('?').count();
        let statements = SIZES
            .into_iter()
            .filter(|&size| size == 1 || size * parameters <= MAX_PARAMETERS)
            .map(|size| {
                let rows = vec![row; size].join(", ");
                let sql: Arc<str> = format!("{head}{rows}{tail}").into();
                (size, AssertSqlSafe(sql).into_sql_str())
            })
            .collect();
        Self { statements }
    }

    /// Splits `rows` in order, the largest size first, each part with its statement.
    pub fn split<'a, T>(&'a self, mut rows: &'a [T]) -> impl Iterator<Item = (SqlStr, &'a [T])> {
        self.statements.iter().flat_map(move |(size, sql)| {
            let chunks = rows.chunks_exact(*size);
            rows = chunks.remainder();
            chunks.map(move |chunk| (sql.clone(), chunk))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(row: &str, rows: usize, expected: &[usize]) {
        let rows: Vec<usize> = (0..rows).collect();
        let batched = Batched::new("VALUES ", row, "");
        let parts: Vec<_> = batched.split(&rows).collect();
        let sizes: Vec<_> = parts.iter().map(|(_, part)| part.len()).collect();
        assert_eq!(sizes, expected);
        let joined: Vec<_> = parts.iter().flat_map(|(_, part)| *part).copied().collect();
        assert_eq!(joined, rows);
        for (sql, part) in parts {
            assert_eq!(sql.as_str().matches(row).count(), part.len());
        }
    }

    #[test]
    fn rows_are_split_in_order_and_largest_first() {
        check("(?)", 0, &[]);
        check("(?)", 1, &[1]);
        check("(?)", 5, &[4, 1]);
        check("(?)", 255, &[64, 64, 64, 16, 16, 16, 4, 4, 4, 1, 1, 1]);
        check("(?)", 600, &[256, 256, 64, 16, 4, 4]);
    }

    #[test]
    fn no_statement_has_more_parameters_than_sqlite_takes() {
        check(&format!("({})", ["?"; 127].join(",")), 256, &[256]);
        check(&format!("({})", ["?"; 128].join(",")), 256, &[64, 64, 64, 64]);
        check(&format!("({})", ["?"; 20_000].join(",")), 2, &[1, 1]);
    }

    #[test]
    fn the_text_is_head_rows_and_tail() {
        let batched = Batched::new("INSERT INTO t VALUES ", "(?, ?)", " RETURNING id");
        let (sql, _) = batched.split(&[(); 4]).next().expect("four rows make a part");
        assert_eq!(sql.as_str(), "INSERT INTO t VALUES (?, ?), (?, ?), (?, ?), (?, ?) RETURNING id");
    }
}
