// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names that delete (image-spec, layer, "Whiteouts").

use super::Refusal;
use super::path::TreePath;

const PREFIX: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Start of the names that AUFS kept for itself; some old layers carry them.
const AUFS: &[u8] = b".wh..wh.";

/// What an entry's name asks for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Action<'p> {
    /// To make the entry.
    Make,
    /// To delete this name, of the same directory, from the layers below.
    Delete(&'p [u8]),
    /// To delete from the directory all that the layers below put there.
    Empty,
    /// Nothing.
    Ignore,
}

/// Reads the last component of an entry's path.
pub(super) fn action(path: &TreePath) -> Result<Action<'_>, Refusal> {
    let mut components = path.components().rev();
    let Some(name) = components.next() else {
        return Ok(Action::Make);
    };
    for directory in components {
        if directory.starts_with(AUFS) {
            return Ok(Action::Ignore);
        }
        if directory.starts_with(PREFIX) {
            return Err(Refusal::WhiteoutDirectory);
        }
    }
    if name == OPAQUE {
        return Ok(Action::Empty);
    }
    if name.starts_with(AUFS) {
        return Ok(Action::Ignore);
    }
    match name.strip_prefix(PREFIX) {
        None => Ok(Action::Make),
        Some(b"" | b"." | b"..") => Err(Refusal::WhiteoutName),
        Some(hidden) => Ok(Action::Delete(hidden)),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain(b"a/b", Ok(Action::Make))]
    #[case::root(b"./", Ok(Action::Make))]
    #[case::prefix_without_its_dots(b"a/wh.b", Ok(Action::Make))]
    #[case::whiteout(b"a/.wh.b", Ok(Action::Delete(b"b")))]
    #[case::whiteout_of_a_dotted_name(b".wh....", Ok(Action::Delete(b"...")))]
    #[case::opaque(b"a/.wh..wh..opq", Ok(Action::Empty))]
    #[case::aufs_directory(b".wh..wh.plnk", Ok(Action::Ignore))]
    #[case::inside_aufs_directory(b".wh..wh.plnk/1.2", Ok(Action::Ignore))]
    #[case::whiteout_of_nothing(b"a/.wh.", Err(Refusal::WhiteoutName))]
    #[case::whiteout_of_itself(b"a/.wh..", Err(Refusal::WhiteoutName))]
    #[case::whiteout_of_its_parent(b"a/.wh...", Err(Refusal::WhiteoutName))]
    #[case::inside_a_whiteout(b".wh.a/b", Err(Refusal::WhiteoutDirectory))]
    fn name_is_understood(#[case] name: &[u8], #[case] expected: Result<Action<'_>, Refusal>) {
        let path = TreePath::from_name(name).unwrap();

        assert_eq!(action(&path), expected);
    }
}
