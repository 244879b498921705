//! Standard output and standard error: results go to the one, remarks to the other.

use std::fmt;
use std::io::{self, IsTerminal as _, Read as _, Write as _};

use super::error::CliError;

/// Writes a piece of a result and flushes it, so that a stream is seen as it comes.
pub(crate) fn write(text: &str) -> Result<(), CliError> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .map_err(|source| CliError::io("cannot write to standard output", source))
}

/// Writes a line of a result.
pub(crate) fn line(text: impl fmt::Display) -> Result<(), CliError> {
    write(&format!("{text}\n"))
}

/// Writes a JSON document, indented for people.
pub(crate) fn json(value: &serde_json::Value) -> Result<(), CliError> {
    line(format_args!("{value:#}"))
}

/// Writes a remark to standard error.
pub(crate) fn note(text: &str) {
    // Without a standard error there is nobody left to tell.
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// The argument, or all of standard input where there is none.
pub(crate) fn argument_or_stdin(argument: Option<String>) -> Result<String, CliError> {
    if let Some(text) = argument {
        return Ok(text);
    }
    if io::stdin().is_terminal() {
        note("reading from the terminal; end with Ctrl-D");
    }
    let mut text = String::new();
    io::stdin()
        .lock()
        .read_to_string(&mut text)
        .map_err(|source| CliError::io("cannot read standard input", source))?;
    Ok(text)
}

/// A number of bytes for people: `92.9 MB`.
pub(crate) fn bytes(count: u64) -> String {
    indicatif::DecimalBytes(count).to_string()
}

/// Columns aligned by their widest cell; cells of `right` columns are aligned to the right.
pub(crate) fn table(header: &[&str], right: &[usize], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([header[column].chars().count()]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    let mut text = String::new();
    let titles: Vec<String> = header.iter().map(|&title| title.to_owned()).collect();
    for row in std::iter::once(&titles).chain(rows) {
        let mut line = String::new();
        for (column, cell) in row.iter().enumerate() {
            let width = widths[column];
            if right.contains(&column) {
                line += &format!("{cell:>width$}  ");
            } else {
                line += &format!("{cell:<width$}  ");
            }
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_its_columns() {
        let rows = vec![vec!["a".into(), "1".into()], vec!["long".into(), "22".into()]];
        assert_eq!(table(&["name", "n"], &[1], &rows), "name   n\na      1\nlong  22\n");
    }
}
