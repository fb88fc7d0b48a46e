// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Mount options as `mount(8)` writes them, sorted by what the kernel does with each.

use rustix::mount::{MountAttrFlags, MountPropagationFlags};
use thiserror::Error;

/// The options of one mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// It is a bind mount, whatever its type says.
    pub bind: Bind,
    /// Attributes of the mount to set.
    pub set: MountAttrFlags,
    /// Attributes of the mount to clear.
    pub clear: MountAttrFlags,
    /// Attributes to set on the mount and on all below it.
    pub set_recursive: MountAttrFlags,
    /// Attributes to clear on the mount and on all below it.
    pub clear_recursive: MountAttrFlags,
    /// How mounts below it propagate, and whether that goes for all below it.
    pub propagation: Option<(MountPropagationFlags, bool)>,
    /// Options of the file system, as name and value; no value for a flag.
    pub data: Vec<(String, Option<String>)>,
}

/// Whether a mount shows another directory, and what of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bind {
    /// It is a file system of its own.
    No,
    /// It shows one mount.
    Single,
    /// It shows a mount and all below it.
    Recursive,
}

/// What is wrong with the options of a mount.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum OptionError {
    /// An option is empty or holds a NUL.
    #[error("`{}` is not an option", .0.escape_default())]
    NotAnOption(String),
    /// An option is known but cannot be honoured.
    #[error("the option `{0}` is not supported")]
    Unsupported(String),
}

/// What one option does.
enum Meaning {
    Set(MountAttrFlags),
    Clear(MountAttrFlags),
    /// Sets one access-time mode, of which there can be only one.
    AccessTime(MountAttrFlags),
    Propagation(MountPropagationFlags),
}

impl MountOptions {
    /// Sorts `options`. Where two contradict each other the later one holds.
    ///
    /// # Errors
    ///
    /// [`OptionError`] names the option that cannot be one.
    pub fn parse<S: AsRef<str>>(options: &[S]) -> Result<Self, OptionError> {
        let none = MountAttrFlags::empty();
        let mut parsed = Self {
            bind: Bind::No,
            set: none,
            clear: none,
            set_recursive: none,
            clear_recursive: none,
            propagation: None,
            data: Vec::new(),
        };
        for option in options {
            parsed.add(option.as_ref())?;
        }
        Ok(parsed)
    }

    fn add(&mut self, option: &str) -> Result<(), OptionError> {
        match option {
            "bind" => {
                // `rbind,bind` is what some engines write for a recursive one.
                if self.bind == Bind::No {
                    self.bind = Bind::Single;
                }
                return Ok(());
            }
            "rbind" => {
                self.bind = Bind::Recursive;
                return Ok(());
            }
            "defaults" => return Ok(()),
            "" => return Err(OptionError::NotAnOption(option.to_owned())),
            _ if option.contains('\0') => return Err(OptionError::NotAnOption(option.to_owned())),
            // Made by engines themselves elsewhere, unknown to the kernel.
            "tmpcopyup" | "idmap" | "ridmap" | "remount" => {
                return Err(OptionError::Unsupported(option.to_owned()));
            }
            _ => {}
        }
        if let Some(meaning) = meaning(option) {
            self.apply(meaning, false);
        } else if let Some(meaning) = option.strip_prefix('r').and_then(meaning) {
            self.apply(meaning, true);
        } else {
            let (name, value) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (option, None),
            };
            self.data.push((name.to_owned(), value));
        }
        Ok(())
    }

    fn apply(&mut self, meaning: Meaning, recursive: bool) {
        let (set, clear) = if recursive {
            (&mut self.set_recursive, &mut self.clear_recursive)
        } else {
            (&mut self.set, &mut self.clear)
        };
        match meaning {
            Meaning::Set(flag) => {
                set.insert(flag);
                clear.remove(flag);
            }
            Meaning::Clear(flag) => {
                clear.insert(flag);
                set.remove(flag);
            }
            Meaning::AccessTime(mode) => {
                set.remove(MountAttrFlags::MOUNT_ATTR__ATIME);
                set.insert(mode);
                // `mount_setattr` wants the whole field cleared with each change of it.
                clear.insert(MountAttrFlags::MOUNT_ATTR__ATIME);
            }
            Meaning::Propagation(propagation) => {
                self.propagation = Some((propagation, recursive));
            }
        }
    }
}

/// What `option` means to the mount itself; `None` if it is the file system's.
fn meaning(option: &str) -> Option<Meaning> {
    use Meaning::{AccessTime, Clear, Propagation, Set};
    Some(match option {
        "ro" => Set(MountAttrFlags::MOUNT_ATTR_RDONLY),
        "rw" => Clear(MountAttrFlags::MOUNT_ATTR_RDONLY),
        "nosuid" => Set(MountAttrFlags::MOUNT_ATTR_NOSUID),
        "suid" => Clear(MountAttrFlags::MOUNT_ATTR_NOSUID),
        "nodev" => Set(MountAttrFlags::MOUNT_ATTR_NODEV),
        "dev" => Clear(MountAttrFlags::MOUNT_ATTR_NODEV),
        "noexec" => Set(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "exec" => Clear(MountAttrFlags::MOUNT_ATTR_NOEXEC),
        "nosymfollow" => Set(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "symfollow" => Clear(MountAttrFlags::MOUNT_ATTR_NOSYMFOLLOW),
        "nodiratime" => Set(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "diratime" => Clear(MountAttrFlags::MOUNT_ATTR_NODIRATIME),
        "noatime" => AccessTime(MountAttrFlags::MOUNT_ATTR_NOATIME),
        "strictatime" => AccessTime(MountAttrFlags::MOUNT_ATTR_STRICTATIME),
        // The kernel's default, of value 0.
        "relatime" | "atime" | "norelatime" | "nostrictatime" => {
            AccessTime(MountAttrFlags::MOUNT_ATTR_RELATIME)
        }
        "private" => Propagation(MountPropagationFlags::PRIVATE),
        "slave" => Propagation(MountPropagationFlags::DOWNSTREAM),
        "shared" => Propagation(MountPropagationFlags::SHARED),
        "unbindable" => Propagation(MountPropagationFlags::UNBINDABLE),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    fn parse(options: &str) -> MountOptions {
        MountOptions::parse(&options.split(',').collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn options_of_dev_are_sorted() {
        let options = parse("nosuid,strictatime,mode=755,size=65536k");

        assert_eq!(
            options.set,
            MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME
        );
        assert_eq!(
            options.data,
            [
                ("mode".to_owned(), Some("755".to_owned())),
                ("size".to_owned(), Some("65536k".to_owned())),
            ]
        );
        assert_eq!(options.bind, Bind::No);
    }

    #[rstest]
    #[case("bind", Bind::Single)]
    #[case("rbind", Bind::Recursive)]
    #[case("rbind,bind", Bind::Recursive)]
    #[case("bind,rbind", Bind::Recursive)]
    fn bind_is_recursive_if_one_option_says_so(#[case] options: &str, #[case] expected: Bind) {
        assert_eq!(parse(options).bind, expected);
    }

    #[rstest]
    #[case("ro,rw", false)]
    #[case("rw,ro", true)]
    fn later_option_holds(#[case] options: &str, #[case] readonly: bool) {
        let options = parse(options);

        assert_eq!(
            options.set.contains(MountAttrFlags::MOUNT_ATTR_RDONLY),
            readonly
        );
        assert_eq!(
            options.clear.contains(MountAttrFlags::MOUNT_ATTR_RDONLY),
            !readonly
        );
    }

    #[test]
    fn recursive_attribute_is_kept_apart() {
        let options = parse("rbind,rro,nodev");

        assert_eq!(options.set_recursive, MountAttrFlags::MOUNT_ATTR_RDONLY);
        assert_eq!(options.set, MountAttrFlags::MOUNT_ATTR_NODEV);
    }

    #[rstest]
    #[case("rprivate", MountPropagationFlags::PRIVATE, true)]
    #[case("slave", MountPropagationFlags::DOWNSTREAM, false)]
    #[case("private,rshared", MountPropagationFlags::SHARED, true)]
    fn propagation_is_read(
        #[case] options: &str,
        #[case] expected: MountPropagationFlags,
        #[case] recursive: bool,
    ) {
        assert_eq!(parse(options).propagation, Some((expected, recursive)));
    }

    #[test]
    fn only_one_access_time_mode_is_left() {
        let options = parse("noatime,strictatime");

        assert_eq!(
            options.set & MountAttrFlags::MOUNT_ATTR__ATIME,
            MountAttrFlags::MOUNT_ATTR_STRICTATIME
        );
    }

    #[rstest]
    #[case("", "`` is not an option")]
    #[case("a\0b", "`a\\u{0}b` is not an option")]
    #[case("tmpcopyup", "the option `tmpcopyup` is not supported")]
    fn what_is_no_option_is_refused(#[case] option: &str, #[case] message: &str) {
        let error = MountOptions::parse(&[option]).unwrap_err();

        assert_eq!(error.to_string(), message);
    }

    proptest! {
        #[test]
        fn attribute_is_never_both_set_and_cleared(
            options in proptest::collection::vec(
                prop::sample::select(vec!["ro", "rw", "nosuid", "suid", "rro", "rrw", "dev", "nodev", "x=1"]),
                0..12,
            )
        ) {
            let options = MountOptions::parse(&options).unwrap();

            prop_assert!((options.set & options.clear).is_empty());
            prop_assert!((options.set_recursive & options.clear_recursive).is_empty());
        }
    }
}
