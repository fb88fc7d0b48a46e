// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! pax extended header records: `<length> <key>=<value>\n` (POSIX.1-2017, pax, "pax Extended
//! Header").

use super::entry::Time;

/// Most extended attributes of one entry.
const MAX_XATTRS: usize = 256;

/// What pax records say of the entry that follows them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Pax {
    pub(crate) path: Option<Vec<u8>>,
    pub(crate) link_path: Option<Vec<u8>>,
    pub(crate) size: Option<u64>,
    pub(crate) uid: Option<i64>,
    pub(crate) gid: Option<i64>,
    pub(crate) mtime: Option<Time>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    pub(crate) sparse: Option<PaxSparse>,
}

/// What pax records say of a sparse file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct PaxSparse {
    /// Version of the format; none before 1.0.
    pub(crate) major: Option<u64>,
    pub(crate) minor: Option<u64>,
    /// The file's name; the entry's own is made up.
    pub(crate) name: Option<Vec<u8>>,
    /// Bytes of the whole file.
    pub(crate) size: Option<u64>,
    /// Segments that were announced.
    pub(crate) count: Option<u64>,
    /// The map, offsets and lengths in turn.
    pub(crate) map: Vec<u64>,
}

/// Records that cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadRecord(pub(crate) &'static str);

/// Reads all records of one extended header.
pub(crate) fn parse(mut bytes: &[u8]) -> Result<Pax, BadRecord> {
    let mut pax = Pax::default();
    while !bytes.is_empty() {
        let (key, value, rest) = record(bytes).ok_or(BadRecord("a record's length is wrong"))?;
        apply(&mut pax, key, value)?;
        bytes = rest;
    }
    Ok(pax)
}

/// Splits the first record off. Its length counts, not the next newline: values may contain those.
fn record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    // Twenty digits hold any length.
    let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&bytes[..space])?).ok()?;
    let (record, rest) = bytes.split_at_checked(length)?;
    let body = record.get(space + 1..)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    Some((&body[..equals], &body[equals + 1..], rest))
}

fn apply(pax: &mut Pax, key: &[u8], value: &[u8]) -> Result<(), BadRecord> {
    if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
        if name.is_empty() || name.contains(&0) {
            return Err(BadRecord(
                "an extended attribute's name is empty or contains a NUL",
            ));
        }
        pax.xattrs.retain(|(known, _)| known != name);
        // The line above makes the time quadratic in their number.
        if pax.xattrs.len() >= MAX_XATTRS {
            return Err(BadRecord("there are more than 256 extended attributes"));
        }
        pax.xattrs.push((name.to_vec(), value.to_vec()));
        return Ok(());
    }
    // An empty value takes an earlier one back.
    let is_set = !value.is_empty();
    match key {
        b"path" => pax.path = is_set.then(|| value.to_vec()),
        b"linkpath" => pax.link_path = is_set.then(|| value.to_vec()),
        b"size" => {
            pax.size = optional(value, decimal).ok_or(BadRecord("the size is not a number"))?
        }
        b"uid" => {
            pax.uid = optional(value, signed).ok_or(BadRecord("the user id is not a number"))?
        }
        b"gid" => {
            pax.gid = optional(value, signed).ok_or(BadRecord("the group id is not a number"))?
        }
        b"mtime" => {
            pax.mtime =
                optional(value, time).ok_or(BadRecord("the modification time is not a number"))?
        }
        // User and group names, comments, access times, vendors' own: without a meaning here.
        _ => {
            if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                apply_sparse(pax.sparse.get_or_insert_default(), key, value)?;
            }
        }
    }
    Ok(())
}

fn apply_sparse(sparse: &mut PaxSparse, key: &[u8], value: &[u8]) -> Result<(), BadRecord> {
    let bad = BadRecord("a record of a sparse file is not a number");
    let number = decimal(value);
    match key {
        b"name" => sparse.name = Some(value.to_vec()),
        b"map" => {
            let numbers = value.split(|byte| *byte == b',');
            sparse.map = numbers.map(decimal).collect::<Option<_>>().ok_or(bad)?;
        }
        b"major" => sparse.major = Some(number.ok_or(bad)?),
        b"minor" => sparse.minor = Some(number.ok_or(bad)?),
        b"size" | b"realsize" => sparse.size = Some(number.ok_or(bad)?),
        b"numblocks" => sparse.count = Some(number.ok_or(bad)?),
        b"offset" | b"numbytes" => {
            let is_turn = (key == b"offset") == sparse.map.len().is_multiple_of(2);
            if !is_turn {
                return Err(BadRecord("records of a sparse file are not in turn"));
            }
            sparse.map.push(number.ok_or(bad)?);
        }
        _ => {}
    }
    Ok(())
}

/// `None`: not readable; `Some(None)`: not set.
fn optional<T>(value: &[u8], read: fn(&[u8]) -> Option<T>) -> Option<Option<T>> {
    if value.is_empty() {
        Some(None)
    } else {
        read(value).map(Some)
    }
}

fn decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() {
        return None;
    }
    text.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

fn signed(text: &[u8]) -> Option<i64> {
    match text.strip_prefix(b"-") {
        Some(digits) => i64::try_from(decimal(digits)?).ok()?.checked_neg(),
        None => i64::try_from(decimal(text)?).ok(),
    }
}

/// `[-]SECONDS[.FRACTION]`; digits below the nanosecond are cut.
fn time(text: &[u8]) -> Option<Time> {
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = signed(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let nanoseconds = (0..9).fold(0_u32, |value, at| {
        value * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0'))
    });
    if text.starts_with(b"-") && nanoseconds > 0 {
        // The fraction goes away from zero, a time's nanoseconds count upwards.
        return Some(Time {
            seconds: seconds.checked_sub(1)?,
            nanoseconds: 1_000_000_000 - nanoseconds,
        });
    }
    Some(Time {
        seconds,
        nanoseconds,
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn records_are_read() {
        let pax = parse(b"12 path=a/b\n13 uid=70000\n30 mtime=1700000000.123456789\n").unwrap();

        assert_eq!(pax.path, Some(b"a/b".to_vec()));
        assert_eq!(pax.uid, Some(70_000));
        assert_eq!(
            pax.mtime,
            Some(Time {
                seconds: 1_700_000_000,
                nanoseconds: 123_456_789
            })
        );
    }

    #[test]
    fn value_may_contain_newlines_and_nul() {
        let pax = parse(b"36 SCHILY.xattr.security.capability=\n\0\n8 size=\n");

        assert_eq!(
            pax,
            Err(BadRecord("a record's length is wrong")),
            "the length is one short"
        );
        let pax = parse(b"40 SCHILY.xattr.security.capability=\n\0\n\n8 size=\n").unwrap();
        assert_eq!(
            pax.xattrs,
            [(b"security.capability".to_vec(), b"\n\0\n".to_vec())]
        );
    }

    #[test]
    fn empty_value_takes_an_earlier_one_back() {
        let pax = parse(b"12 path=a/b\n8 path=\n").unwrap();

        assert_eq!(pax.path, None);
    }

    #[rstest]
    #[case::no_length(b"path=a\n")]
    #[case::length_beyond_the_end(b"99 path=a\n")]
    #[case::length_of_zero(b"0 path=a\n")]
    #[case::length_inside_the_key(b"5 path=a\n")]
    #[case::no_newline(b"9 path=ab")]
    #[case::no_equals(b"7 path\n")]
    #[case::huge_length(b"99999999999999999999999 path=a\n")]
    #[case::size_is_text(b"10 size=a\n")]
    #[case::size_is_negative(b"11 size=-1\n")]
    #[case::sparse_map_of_text(b"24 GNU.sparse.map=0,x,1\n")]
    #[case::sparse_parts_out_of_turn(b"25 GNU.sparse.numbytes=1\n")]
    #[case::xattr_without_name(b"19 SCHILY.xattr.=a\n")]
    fn bad_record_is_refused(#[case] bytes: &[u8]) {
        assert!(parse(bytes).is_err());
    }

    #[rstest]
    #[case::whole(b"5", Some((5, 0)))]
    #[case::fraction(b"5.25", Some((5, 250_000_000)))]
    #[case::below_a_nanosecond(b"5.1234567899", Some((5, 123_456_789)))]
    #[case::before_the_epoch(b"-1.25", Some((-2, 750_000_000)))]
    #[case::just_before_the_epoch(b"-0.5", Some((-1, 500_000_000)))]
    #[case::text(b"now", None)]
    #[case::two_dots(b"1.2.3", None)]
    fn time_is_read(#[case] text: &[u8], #[case] expected: Option<(i64, u32)>) {
        assert_eq!(
            time(text),
            expected.map(|(seconds, nanoseconds)| Time {
                seconds,
                nanoseconds
            })
        );
    }
}
