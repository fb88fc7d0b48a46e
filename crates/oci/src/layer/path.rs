// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Names of entries, checked before anything is looked up.

use super::Refusal;

/// Most components of a path in the tree. Deeper trees could not be walked with one descriptor a
/// level.
pub(super) const DEPTH_LIMIT: usize = 256;
/// Longest path that a system call takes.
const PATH_LIMIT: usize = 4095;
/// Longest component that file systems take.
const COMPONENT_LIMIT: usize = 255;

/// A path below the root: components joined by single slashes, none of them empty, `.` or `..`. The
/// root itself is the empty path.
///
/// Sorted bytewise, all below a directory comes after it; see [`TreePath::below`].
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct TreePath(Vec<u8>);

impl TreePath {
    /// Reads an entry's name. `.`, doubled and trailing slashes mean nothing; names that lead
    /// anywhere but down are refused.
    pub(super) fn from_name(name: &[u8]) -> Result<Self, Refusal> {
        if name.starts_with(b"/") {
            return Err(Refusal::Absolute);
        }
        if name.contains(&0) {
            return Err(Refusal::Nul);
        }
        let mut path = Self::default();
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return Err(Refusal::ParentDirectory),
                _ => path.push(component)?,
            }
        }
        path.check_depth()?;
        Ok(path)
    }

    pub(super) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The path as a system call takes it, relative to the root.
    pub(super) fn as_argument(&self) -> &[u8] {
        if self.is_root() { b"." } else { &self.0 }
    }

    pub(super) fn components(&self) -> impl DoubleEndedIterator<Item = &[u8]> {
        self.0
            .split(|byte| *byte == b'/')
            .filter(|component| !component.is_empty())
    }

    /// The directory's path and the last component; `None` for the root.
    pub(super) fn split(&self) -> Option<(Self, &[u8])> {
        if self.is_root() {
            return None;
        }
        Some(match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (Self(self.0[..slash].to_vec()), &self.0[slash + 1..]),
            None => (Self::default(), &self.0),
        })
    }

    /// Goes down into `component`, which is not empty, `.` or `..` and has no slash.
    pub(super) fn push(&mut self, component: &[u8]) -> Result<(), Refusal> {
        if component.len() > COMPONENT_LIMIT {
            return Err(Refusal::LongComponent);
        }
        if !self.is_root() {
            self.0.push(b'/');
        }
        self.0.extend_from_slice(component);
        if self.0.len() > PATH_LIMIT {
            Err(Refusal::Deep(DEPTH_LIMIT))
        } else {
            Ok(())
        }
    }

    /// The path of `component` in this directory.
    pub(super) fn join(&self, component: &[u8]) -> Result<Self, Refusal> {
        let mut path = self.clone();
        path.push(component)?;
        Ok(path)
    }

    /// Goes up; the root's parent is the root.
    pub(super) fn pop(&mut self) {
        let end = self.0.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.0.truncate(end);
    }

    pub(super) fn check_depth(&self) -> Result<(), Refusal> {
        if self.components().count() > DEPTH_LIMIT {
            Err(Refusal::Deep(DEPTH_LIMIT))
        } else {
            Ok(())
        }
    }

    /// The range of paths strictly below this one, which is not the root's.
    pub(super) fn below(&self) -> std::ops::Range<Self> {
        // The byte after the slash: no path between has another start.
        let bound = |end: u8| Self([self.0.as_slice(), &[end]].concat());
        bound(b'/')..bound(b'/' + 1)
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::plain(b"a/b", b"a/b")]
    #[case::leading_dot(b"./a/b", b"a/b")]
    #[case::trailing_slash(b"a/b/", b"a/b")]
    #[case::doubled_slash(b"a//b", b"a/b")]
    #[case::root(b"./", b"")]
    #[case::dots_in_a_component(b"..a/b..", b"..a/b..")]
    #[case::not_utf8(b"\xff/b", b"\xff/b")]
    fn name_is_read(#[case] name: &[u8], #[case] expected: &[u8]) {
        assert_eq!(TreePath::from_name(name).unwrap().as_bytes(), expected);
    }

    #[rstest]
    #[case::absolute(b"/etc/passwd".to_vec(), Refusal::Absolute)]
    #[case::parent(b"../x".to_vec(), Refusal::ParentDirectory)]
    #[case::parent_in_the_middle(b"a/../../x".to_vec(), Refusal::ParentDirectory)]
    #[case::parent_at_the_end(b"a/..".to_vec(), Refusal::ParentDirectory)]
    #[case::nul(b"a\0b".to_vec(), Refusal::Nul)]
    #[case::long_component(vec![b'x'; 256], Refusal::LongComponent)]
    #[case::long_path(b"x/".repeat(3000), Refusal::Deep(DEPTH_LIMIT))]
    #[case::deep_path(b"x/".repeat(257), Refusal::Deep(DEPTH_LIMIT))]
    fn name_that_leads_elsewhere_is_refused(#[case] name: Vec<u8>, #[case] expected: Refusal) {
        assert_eq!(TreePath::from_name(&name), Err(expected));
    }

    #[test]
    fn longest_name_is_taken() {
        assert!(TreePath::from_name(&b"x/".repeat(256)).is_ok());
        assert!(TreePath::from_name(&[b'x'; 255]).is_ok());
    }

    proptest! {
        #[test]
        fn accepted_name_has_only_components_that_lead_down(name in proptest::collection::vec(prop_oneof![Just(b'/'), Just(b'.'), any::<u8>()], 0..40)) {
            if let Ok(path) = TreePath::from_name(&name) {
                prop_assert!(path.components().all(|part| !matches!(part, b"" | b"." | b"..") && !part.contains(&0)));
                prop_assert_eq!(TreePath::from_name(path.as_bytes()), Ok(path));
            }
        }

        #[test]
        fn range_below_holds_just_what_is_below(names in proptest::collection::btree_set("[a/.-]{1,6}", 0..20), top in "[a.-]{1,2}") {
            let paths: BTreeSet<TreePath> = names.iter().filter_map(|name| TreePath::from_name(name.as_bytes()).ok()).collect();
            let Ok(top) = TreePath::from_name(top.as_bytes()) else { return Ok(()) };
            prop_assume!(!top.is_root());

            let in_range: Vec<&TreePath> = paths.range(top.below()).collect();

            let prefix = [top.as_bytes(), b"/"].concat();
            let expected: Vec<&TreePath> = paths.iter().filter(|path| path.as_bytes().starts_with(&prefix)).collect();
            prop_assert_eq!(in_range, expected);
        }
    }
}
