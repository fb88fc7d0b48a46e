// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From `user[:group]` and the databases to ids: pure.

use super::database::{accounts, groups, id};
use super::{User, UserError};

/// Most further groups; the kernel takes no more (NGROUPS_MAX).
const GROUP_LIMIT: usize = 65_536;

/// Finds whom `text` (`user[:group]`) means by the content of `/etc/passwd` and `/etc/group`.
///
/// As in other engines: digits are an id, whether or not the database knows it; a known user
/// brings its group, home and further groups; a group that is given replaces all of its groups.
///
/// # Errors
/// Where a name is unknown or a number is no id.
pub fn look_up(text: &str, passwd: &[u8], group: &[u8]) -> Result<User, UserError> {
    let (user, wanted_group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let is_malformed = wanted_group.is_some_and(|group| group.is_empty() || group.contains(':'));
    if is_malformed || text.chars().any(char::is_control) {
        return Err(UserError::Form(text.escape_debug().to_string()));
    }
    let user = if user.is_empty() { "0" } else { user };

    let uid = number(user)?;
    let account = accounts(passwd).find(|account| match uid {
        Some(uid) => account.uid == uid,
        None => account.name == user.as_bytes(),
    });
    let mut found = match (&account, uid) {
        (Some(account), _) => User {
            uid: account.uid,
            gid: account.gid,
            home: home(account.home),
            ..User::default()
        },
        (None, Some(uid)) => User {
            uid,
            ..User::default()
        },
        (None, None) => return Err(UserError::UnknownUser(user.to_owned())),
    };
    if let Some(wanted) = wanted_group {
        let gid = number(wanted)?;
        let by_name = || {
            groups(group)
                .find(|group| group.name == wanted.as_bytes())
                .map(|group| group.gid)
        };
        found.gid = gid
            .or_else(by_name)
            .ok_or_else(|| UserError::UnknownGroup(wanted.to_owned()))?;
    } else if let Some(account) = account {
        found.additional_gids = groups(group)
            .filter(|group| group.has_member(account.name))
            .map(|group| group.gid)
            .take(GROUP_LIMIT)
            .collect();
        found.additional_gids.sort_unstable();
        found.additional_gids.dedup();
    }
    Ok(found)
}

/// The id that the text is; `None` for a name.
fn number(text: &str) -> Result<Option<u32>, UserError> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Ok(None);
    }
    match id(text.as_bytes()) {
        Some(id) => Ok(Some(id)),
        None => Err(UserError::Id(text.to_owned())),
    }
}

/// A home that an environment variable can name; the root directory in place of others.
fn home(text: &[u8]) -> String {
    match std::str::from_utf8(text) {
        Ok(home) if home.starts_with('/') && !home.contains('\0') => home.to_owned(),
        _ => "/".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    const PASSWD: &[u8] =
        b"root:x:0:0:root:/root:/bin/sh\nweb:x:33:33:www:/srv:/bin/false\n77:x:5:6::/digits:\n";
    const GROUP: &[u8] = b"root:x:0:\nadm:x:4:web,root\nweb:x:33:\nstaff:x:50:web\n";

    #[rstest]
    #[case::nobody_said("", (0, 0, &[4][..], "/root"))]
    #[case::name("web", (33, 33, &[4, 50][..], "/srv"))]
    #[case::known_number("33", (33, 33, &[4, 50][..], "/srv"))]
    #[case::unknown_number("1000", (1000, 0, &[][..], "/"))]
    #[case::digits_are_a_number("77", (77, 0, &[][..], "/"))]
    #[case::name_and_group("web:adm", (33, 4, &[][..], "/srv"))]
    #[case::name_and_number("web:1234", (33, 1234, &[][..], "/srv"))]
    #[case::number_and_number("1000:1001", (1000, 1001, &[][..], "/"))]
    #[case::group_alone(":adm", (0, 4, &[][..], "/root"))]
    #[case::largest_id("4294967294", (4_294_967_294, 0, &[][..], "/"))]
    fn user_is_found(#[case] text: &str, #[case] expected: (u32, u32, &[u32], &str)) {
        let user = look_up(text, PASSWD, GROUP).unwrap();

        let (uid, gid, additional_gids, home) = expected;
        assert_eq!(
            user,
            User {
                uid,
                gid,
                additional_gids: additional_gids.to_vec(),
                home: home.into()
            }
        );
    }

    #[rstest]
    #[case("nobody", "user `nobody` is not in the image's /etc/passwd")]
    #[case("web:nogroup", "group `nogroup` is not in the image's /etc/group")]
    #[case("4294967295", "`4294967295` is not a user or group id")]
    #[case("web:99999999999", "`99999999999` is not a user or group id")]
    #[case("-1", "user `-1` is not in")]
    #[case("web:", "is not of the form")]
    #[case("web:adm:x", "is not of the form")]
    #[case("we\nb", "is not of the form")]
    fn unknown_user_is_refused(#[case] text: &str, #[case] message: &str) {
        let error = look_up(text, PASSWD, GROUP).unwrap_err().to_string();

        assert!(error.contains(message), "{error}");
    }

    proptest! {
        #[test]
        fn any_database_is_survived(text in "[a-z0-9:]{0,8}", passwd in proptest::collection::vec(any::<u8>(), 0..200), group in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(user) = look_up(&text, &passwd, &group) {
                prop_assert!(user.uid != u32::MAX && user.gid != u32::MAX);
                prop_assert!(user.home.starts_with('/'));
            }
        }
    }
}
