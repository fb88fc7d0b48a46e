// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Lines of `/etc/passwd` and `/etc/group`. Lines that are not of their form are passed over, as
//! the C library does.

/// A line of `/etc/passwd`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Account<'d> {
    pub(super) name: &'d [u8],
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: &'d [u8],
}

/// A line of `/etc/group`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Group<'d> {
    pub(super) name: &'d [u8],
    pub(super) gid: u32,
    members: &'d [u8],
}

impl Group<'_> {
    pub(super) fn has_member(&self, name: &[u8]) -> bool {
        self.members
            .split(|byte| *byte == b',')
            .any(|member| member == name)
    }
}

/// The accounts of a database.
pub(super) fn accounts(passwd: &[u8]) -> impl Iterator<Item = Account<'_>> {
    lines(passwd).filter_map(|mut fields| {
        let name = fields.next()?;
        let _password = fields.next()?;
        let (uid, gid) = (id(fields.next()?)?, id(fields.next()?)?);
        let _comment = fields.next();
        let home = fields.next().unwrap_or_default();
        Some(Account {
            name,
            uid,
            gid,
            home,
        })
    })
}

/// The groups of a database.
pub(super) fn groups(group: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(group).filter_map(|mut fields| {
        let name = fields.next()?;
        let _password = fields.next()?;
        let gid = id(fields.next()?)?;
        Some(Group {
            name,
            gid,
            members: fields.next().unwrap_or_default(),
        })
    })
}

/// A user or group id: decimal digits. The largest number means "none" to the kernel.
pub(super) fn id(text: &[u8]) -> Option<u32> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text)
        .ok()?
        .parse()
        .ok()
        .filter(|id| *id != u32::MAX)
}

fn lines(database: &[u8]) -> impl Iterator<Item = impl Iterator<Item = &[u8]>> {
    database
        .split(|byte| *byte == b'\n')
        .map(<[u8]>::trim_ascii)
        .filter(|line| !line.is_empty() && !line.starts_with(b"#"))
        .map(|line| line.split(|byte| *byte == b':'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_lines_are_passed_over() {
        let passwd = b"# comment\n\nno colons\nbad:x:one:1::/:\nhuge:x:4294967295:1::/:\n+::::::\ngood:x:1:2::/home\n";

        let found: Vec<Account<'_>> = accounts(passwd).collect();

        assert_eq!(
            found,
            [Account {
                name: b"good",
                uid: 1,
                gid: 2,
                home: b"/home"
            }]
        );
    }

    #[test]
    fn members_are_whole_names() {
        let group = groups(b"wheel:x:10:rooter,web\n").next().unwrap();

        assert!(group.has_member(b"web"));
        assert!(!group.has_member(b"root"));
    }
}
