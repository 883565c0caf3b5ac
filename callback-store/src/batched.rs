use std::sync::Arc;

use sqlx::{AssertSqlSafe, SqlSafeStr, SqlStr};

/// SQLite's limit on the parameters of one statement, `SQLITE_MAX_VARIABLE_NUMBER`.
const MAX_PARAMETERS: usize = 32_766;

/// The most rows of one statement; the sizes are the powers of two up to it.
const MOST: usize = 256;

/// Multi-row statements of fixed sizes, so that each stays prepared.
///
/// A part of the rows goes with the smallest statement that has room for it: of 1, 2, 4 … 256 rows, as far as 32,766
/// parameters allow. What is left of the room is bound to nothing, and so is NULL: the statement must pass over it.
#[derive(Clone, Debug)]
pub struct Batched {
    /// Smallest first, each with its number of rows.
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
    /// let head = "INSERT INTO note (id, text) SELECT * FROM (VALUES ";
    /// let insert = Batched::new(head, "(?, ?)", ") WHERE column1 IS NOT NULL");
    /// let rows = ["a"; 300];
    /// let sizes: Vec<_> = insert.split(&rows).map(|(_, rows)| rows.len()).collect();
    /// assert_eq!(sizes, [256, 44]);
    /// ```
    #[must_use]
    pub fn new(head: &str, row: &str, tail: &str) -> Self {
        let parameters = row.matches('?').count();
        let sizes = (0..=MOST.ilog2()).map(|power| 1 << power);
        let statements = sizes
            .filter(|size| *size == 1 || size * parameters <= MAX_PARAMETERS)
            .map(|size| {
                let rows = vec![row; size].join(", ");
                let sql: Arc<str> = format!("{head}{rows}{tail}").into();
                (size, AssertSqlSafe(sql).into_sql_str())
            })
            .collect();
        Self { statements }
    }

    /// Splits `rows` in order, each part with a statement that has room for it.
    pub fn split<'a, T>(&'a self, rows: &'a [T]) -> impl Iterator<Item = (SqlStr, &'a [T])> {
        // There is a statement for one row at least.
        let largest = self.statements.last().map_or(1, |(size, _)| *size);
        rows.chunks(largest).filter_map(move |part| {
            let (_, sql) = self.statements.iter().find(|(size, _)| *size >= part.len())?;
            Some((sql.clone(), part))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(row: &str, rows: usize, expected: &[(usize, usize)]) {
        let rows: Vec<usize> = (0..rows).collect();
        let batched = Batched::new("VALUES ", row, "");
        let parts: Vec<_> = batched.split(&rows).collect();
        let sizes: Vec<_> = parts.iter().map(|(sql, part)| (part.len(), sql.as_str().matches(row).count())).collect();
        assert_eq!(sizes, expected);
        let joined: Vec<_> = parts.iter().flat_map(|(_, part)| *part).copied().collect();
        assert_eq!(joined, rows);
    }

    #[test]
    fn each_part_goes_with_the_smallest_statement_that_has_room() {
        check("(?)", 0, &[]);
        check("(?)", 1, &[(1, 1)]);
        check("(?)", 5, &[(5, 8)]);
        check("(?)", 255, &[(255, 256)]);
        check("(?)", 600, &[(256, 256), (256, 256), (88, 128)]);
    }

    #[test]
    fn no_statement_has_more_parameters_than_sqlite_takes() {
        check(&format!("({})", ["?"; 127].join(",")), 256, &[(256, 256)]);
        check(&format!("({})", ["?"; 128].join(",")), 256, &[(128, 128), (128, 128)]);
        check(&format!("({})", ["?"; 20_000].join(",")), 2, &[(1, 1), (1, 1)]);
    }

    #[test]
    fn the_text_is_head_rows_and_tail() {
        let batched = Batched::new("INSERT INTO t VALUES ", "(?, ?)", " RETURNING id");
        let (sql, _) = batched.split(&[(); 4]).next().expect("four rows make a part");
        assert_eq!(sql.as_str(), "INSERT INTO t VALUES (?, ?), (?, ?), (?, ?), (?, ?) RETURNING id");
    }
}
