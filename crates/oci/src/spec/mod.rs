// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! From an image's config and a user's wishes to the OCI runtime specification of a container in
//! the guest: pure.
//!
//! Defaults are those that people know from docker: its environment, mounts, capabilities, device
//! rules, masked and read-only paths.

mod annotations;
mod linux;
mod mounts;
mod process;

use std::path::Path;

use oci_spec::runtime::{Box as ConsoleSize, BoxBuilder as ConsoleSizeBuilder, Root, Spec};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::image::ImageConfig;
use crate::user::User;

pub use self::mounts::Bind;
pub use self::process::exec;

/// Version of the OCI runtime specification that is followed.
const OCI_VERSION: &str = "1.2.0";

/// What a user wants other than the image's config has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Overrides {
    /// Words after the entrypoint, in place of the image's; none: the image's.
    pub command: Vec<String>,
    /// Environment, `NAME=VALUE`, added to the image's or in place of variables of it.
    pub env: Vec<String>,
    /// Directory to start in.
    pub workdir: Option<String>,
    /// User to run as; see [`user`].
    pub user: Option<String>,
    /// Name of the container's host.
    pub hostname: Option<String>,
    /// The terminal of the process, if it has one.
    pub terminal: Option<TerminalSize>,
}

/// The size of a terminal, in characters; 0 where it is not known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TerminalSize {
    /// Characters of a line.
    pub columns: u16,
    /// Lines.
    pub rows: u16,
}

impl TerminalSize {
    fn console_size(self) -> Option<ConsoleSize> {
        if self.columns == 0 || self.rows == 0 {
            return None;
        }
        ConsoleSizeBuilder::default()
            .height(self.rows)
            .width(self.columns)
            .build()
            .ok()
    }
}

/// All that decides on a container's specification.
#[derive(Clone, Copy, Debug)]
pub struct Container<'c> {
    /// The image's config; an empty one for a bare tree.
    pub config: &'c ImageConfig,
    /// The user's wishes.
    pub overrides: &'c Overrides,
    /// Whom [`user`] means.
    pub user: &'c User,
    /// Path of the root file system, in the guest.
    pub root: &'c Path,
    /// Volumes, with their sources in the guest.
    pub binds: &'c [Bind],
}

/// A container that cannot be.
#[derive(Debug, Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum SpecError {
    /// Nothing to run.
    #[error("there is no command to run: none was given, and there is no image that names one")]
    NoCommand,
    /// A command without a name.
    #[error("the name of the command to run is empty")]
    EmptyCommand,
    /// A variable without a name or value.
    #[error("environment variable `{0}` is not of the form NAME=VALUE")]
    Environment(String),
    /// A directory that is not told from the root.
    #[error("working directory `{0}` is not an absolute path")]
    WorkingDirectory(String),
    /// A name that the kernel does not take.
    #[error("`{0}` is not a host name of 1 to 64 letters, digits, dots, dashes and underscores")]
    Hostname(String),
    /// A text that cannot be handed to a process.
    #[error("{0} contains a NUL character")]
    Nul(&'static str),
}

/// The user that the container runs as, as a text for [`crate::user::resolve`].
pub fn user<'c>(config: &'c ImageConfig, overrides: &'c Overrides) -> &'c str {
    overrides.user.as_deref().unwrap_or(&config.config.user)
}

/// Builds the specification.
///
/// # Errors
/// Where the image and the wishes give no command, or one of them cannot be honoured.
pub fn build(container: Container<'_>) -> Result<Spec, SpecError> {
    let hostname = container
        .overrides
        .hostname
        .as_deref()
        .map(checked_hostname)
        .transpose()?;
    let mut root = Root::default();
    root.set_path(container.root.to_owned())
        .set_readonly(Some(false));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_process(Some(process::process(container)?))
        .set_hostname(hostname)
        .set_mounts(Some(mounts::mounts(container.binds)))
        .set_annotations(Some(annotations::annotations(container.config)))
        .set_linux(Some(linux::linux()));
    Ok(spec)
}

fn checked_hostname(name: &str) -> Result<String, SpecError> {
    let is_taken = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    if (1..=64).contains(&name.len()) && name.bytes().all(is_taken) {
        Ok(name.to_owned())
    } else {
        Err(SpecError::Hostname(name.escape_debug().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::image::ContainerConfig;

    fn build_with(config: ContainerConfig, overrides: &Overrides) -> Result<Spec, SpecError> {
        let config = ImageConfig {
            config,
            ..ImageConfig::default()
        };
        build(Container {
            config: &config,
            overrides,
            user: &User::default(),
            root: Path::new("/run/share/rootfs"),
            binds: &[],
        })
    }

    fn shell() -> ContainerConfig {
        ContainerConfig {
            cmd: vec!["sh".into()],
            ..ContainerConfig::default()
        }
    }

    #[test]
    fn specification_survives_its_json() {
        let spec = build_with(shell(), &Overrides::default()).unwrap();

        let json = serde_json::to_string(&spec).unwrap();

        assert_eq!(serde_json::from_str::<Spec>(&json).unwrap(), spec);
    }

    #[test]
    fn root_is_the_guests() {
        let spec = build_with(shell(), &Overrides::default()).unwrap();

        assert_eq!(
            spec.root().as_ref().unwrap().path(),
            Path::new("/run/share/rootfs")
        );
    }

    #[test]
    fn image_without_command_is_refused() {
        assert_eq!(
            build_with(ContainerConfig::default(), &Overrides::default()),
            Err(SpecError::NoCommand)
        );
    }

    #[test]
    fn empty_word_is_a_commands_argument_and_no_command() {
        let overrides = Overrides {
            command: vec![String::new()],
            ..Overrides::default()
        };
        let program = ContainerConfig {
            entrypoint: vec!["/bin/echo".to_owned()],
            ..ContainerConfig::default()
        };

        let alone = build_with(ContainerConfig::default(), &overrides);
        let behind = build_with(program, &overrides);

        assert_eq!(alone, Err(SpecError::EmptyCommand));
        assert!(behind.is_ok());
    }

    #[rstest]
    #[case::ordinary("web-1", true)]
    #[case::longest(&"x".repeat(64), true)]
    #[case::empty("", false)]
    #[case::too_long(&"x".repeat(65), false)]
    #[case::control_character("a\nb", false)]
    #[case::slash("a/b", false)]
    fn hostname_is_checked(#[case] name: &str, #[case] is_taken: bool) {
        let overrides = Overrides {
            hostname: Some(name.to_owned()),
            ..Overrides::default()
        };

        assert_eq!(build_with(shell(), &overrides).is_ok(), is_taken);
    }

    #[rstest]
    #[case::of_the_image(None, "web")]
    #[case::of_the_caller(Some("db:adm"), "db:adm")]
    fn user_is_the_callers_before_the_images(#[case] wish: Option<&str>, #[case] expected: &str) {
        let config = ImageConfig {
            config: ContainerConfig {
                user: "web".into(),
                ..ContainerConfig::default()
            },
            ..ImageConfig::default()
        };
        let overrides = Overrides {
            user: wish.map(str::to_owned),
            ..Overrides::default()
        };

        assert_eq!(user(&config, &overrides), expected);
    }
}
