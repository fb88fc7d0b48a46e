// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names: one component of a path, and nothing that means anything else to the host.

use std::ffi::CStr;
use std::fmt;

use rustix::io::Errno;

/// The longest name of a directory entry, in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;
/// The longest target of a symbolic link, in bytes: `PATH_MAX` without its NUL.
pub const MAX_TARGET: usize = 4095;

/// One component of a path, given by the guest and checked: not empty, not `.` or `..`, without `/`, at
/// most [`MAX_NAME`] bytes. Joined to a directory's descriptor it cannot lead out of that directory,
/// other than through a symbolic link, which whoever opens it must refuse to follow.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Name<'b>(&'b CStr);

impl<'b> Name<'b> {
    /// Checks a name.
    ///
    /// # Errors
    /// `ENAMETOOLONG` for more than [`MAX_NAME`] bytes; `EINVAL` for an empty name, for `.` and `..`, and
    /// for a name that holds a `/`. A `..` that reached the host would be resolved by the host, where the
    /// root of the share is no root.
    pub fn new(name: &'b CStr) -> Result<Self, Errno> {
        let bytes = name.to_bytes();
        if bytes.len() > MAX_NAME {
            return Err(Errno::NAMETOOLONG);
        }
        if matches!(bytes, b"" | b"." | b"..") || bytes.contains(&b'/') {
            return Err(Errno::INVAL);
        }
        Ok(Self(name))
    }

    /// The name, for a system call.
    pub const fn as_c_str(self) -> &'b CStr {
        self.0
    }
}

impl fmt::Debug for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::empty("", Errno::INVAL)]
    #[case::itself(".", Errno::INVAL)]
    #[case::parent("..", Errno::INVAL)]
    #[case::absolute("/etc", Errno::INVAL)]
    #[case::two_components("a/b", Errno::INVAL)]
    #[case::climbing("../x", Errno::INVAL)]
    #[case::trailing_slash("a/", Errno::INVAL)]
    #[case::too_long(&"n".repeat(256), Errno::NAMETOOLONG)]
    fn hostile_names_are_refused(#[case] name: &str, #[case] error: Errno) {
        let name = CString::new(name).unwrap();

        assert_eq!(Name::new(&name), Err(error));
    }

    #[rstest]
    #[case::plain("file")]
    #[case::hidden(".profile")]
    #[case::three_dots("...")]
    #[case::longest(&"n".repeat(255))]
    #[case::newline("a\nb")]
    fn odd_but_harmless_names_pass(#[case] name: &str) {
        let name = CString::new(name).unwrap();

        assert_eq!(Name::new(&name).unwrap().as_c_str(), name.as_c_str());
    }

    proptest! {
        #[test]
        fn an_accepted_name_is_one_normal_path_component(name in "[a./]{0,6}") {
            use std::path::{Component, Path};
            let c_name = CString::new(name.clone()).unwrap();

            let accepted = Name::new(&c_name).is_ok();

            let mut components = Path::new(&name).components();
            let normal = matches!(components.next(), Some(Component::Normal(part)) if part == name.as_str())
                && components.next().is_none();
            prop_assert_eq!(accepted, normal);
        }
    }
}
