//! Columns of text. Pure.

use crate::terminal::{Tone, toned};

/// A cell and its tone.
pub(crate) type Cell = (String, Tone);

pub(crate) fn plain(text: impl Into<String>) -> Cell {
    (text.into(), Tone::Plain)
}

/// Rows under their titles, in columns that are as wide as they have to be.
pub(crate) fn table(titles: &[&str], rows: &[Vec<Cell>], colours: bool) -> String {
    let head: Vec<Cell> = titles.iter().map(|title| (*title).to_owned()).map(|title| (title, Tone::Plain)).collect();
    let all: Vec<&Vec<Cell>> = std::iter::once(&head).chain(rows).collect();
    let width = |column: usize| all.iter().map(|row| row[column].0.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let mut text = String::new();
    for row in all {
        let cells = row.iter().zip(&widths).map(|((cell, tone), width)| {
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            toned(cell, *tone, colours) + &padding
        });
        text += cells.collect::<Vec<_>>().join("   ").trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_they_have_to_be() {
        let rows = [vec![plain("a"), ("long one".to_owned(), Tone::Bad)], vec![plain("largest"), plain("")]];
        assert_eq!(table(&["NAME", "X"], &rows, false), "NAME      X\na         long one\nlargest\n");
        assert!(table(&["NAME", "X"], &rows, true).contains("\x1b[31mlong one\x1b[0m"));
    }
}
