// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Tables for people.

use crate::printable::printable;

/// Rows under heads, in columns as wide as what is in them. What came from images and guests steers no terminal.
pub fn table<const N: usize>(heads: [&str; N], rows: &[[String; N]]) -> String {
    let clean = |text: &str| printable(text).replace('\n', " ");
    let rows: Vec<[String; N]> = std::iter::once(heads.map(clean))
        .chain(
            rows.iter()
                .map(|row| row.each_ref().map(|text| clean(text))),
        )
        .collect();
    let width = |column: usize| {
        rows.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    rows.iter()
        .map(|row| {
            let line: String = row
                .iter()
                .zip(widths)
                .map(|(text, width)| format!("{text:width$}   "))
                .collect();
            format!("{}\n", line.trim_end())
        })
        .collect()
}

/// Bytes, for people: `1.5 MiB`.
#[expect(
    clippy::cast_precision_loss,
    reason = "nobody reads more than three digits"
)]
pub fn bytes(number: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if number < 1024 {
        return format!("{number} B");
    }
    let mut figure = number as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next();
    while figure >= 1024.0
        && let Some(next) = units.next()
    {
        figure /= 1024.0;
        unit = Some(next);
    }
    format!("{figure:.1} {}", unit.copied().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn columns_are_as_wide_as_what_is_in_them() {
        let rows = [
            ["web".to_owned(), "x".to_owned()],
            ["a".to_owned(), "a\x1b[2J\nb".to_owned()],
        ];

        assert_eq!(
            table(["NAME", "COMMAND"], &rows),
            "NAME   COMMAND\nweb    x\na      a[2J b\n"
        );
    }

    #[rstest]
    #[case(0, "0 B")]
    #[case(1023, "1023 B")]
    #[case(1536, "1.5 KiB")]
    #[case(5 << 30, "5.0 GiB")]
    #[case(u64::MAX, "16384.0 PiB")]
    fn bytes_are_told_in_units(#[case] number: u64, #[case] expected: &str) {
        assert_eq!(bytes(number), expected);
    }
}
