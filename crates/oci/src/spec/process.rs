// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The container's process: command line, environment, directory, user, capabilities, limits.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    Process, User as SpecUser,
};
use tracing::warn;

use super::{Container, Overrides, SpecError};
use crate::image::ContainerConfig;
use crate::user::User;

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What docker leaves to containers.
const CAPABILITIES: [Capability; 14] = [
    Capability::AuditWrite,
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Mknod,
    Capability::NetBindService,
    Capability::NetRaw,
    Capability::Setfcap,
    Capability::Setgid,
    Capability::Setpcap,
    Capability::Setuid,
    Capability::SysChroot,
];

/// Open files: what programs count on, and what those may ask for that want more. A higher soft
/// limit would cost programs that close all descriptors one by one.
const OPEN_FILES: (u64, u64) = (1024, 524_288);

pub(super) fn process(container: Container<'_>) -> Result<Process, SpecError> {
    let Container {
        config,
        overrides,
        user,
        ..
    } = container;
    let mut process = Process::default();
    process
        .set_terminal(Some(overrides.terminal))
        .set_user(spec_user(user))
        .set_args(Some(arguments(&config.config, overrides)?))
        .set_env(Some(environment(&config.config, overrides, user)?))
        .set_cwd(working_directory(&config.config, overrides)?)
        .set_capabilities(Some(capabilities(user)))
        .set_rlimits(Some(vec![open_files()]))
        .set_no_new_privileges(Some(false));
    Ok(process)
}

fn arguments(config: &ContainerConfig, overrides: &Overrides) -> Result<Vec<String>, SpecError> {
    let command = if overrides.command.is_empty() {
        &config.cmd
    } else {
        &overrides.command
    };
    let arguments: Vec<String> = config.entrypoint.iter().chain(command).cloned().collect();
    if arguments.is_empty() {
        return Err(SpecError::NoCommand);
    }
    require_no_nul("the command line", &arguments)?;
    Ok(arguments)
}

/// Defaults, then the image's, then the user's: of a name, the last value counts, at the place of
/// the first.
fn environment(
    config: &ContainerConfig,
    overrides: &Overrides,
    user: &User,
) -> Result<Vec<String>, SpecError> {
    let hostname = overrides
        .hostname
        .as_ref()
        .map(|name| format!("HOSTNAME={name}"));
    let terminal = overrides.terminal.then(|| "TERM=xterm".to_owned());
    let defaults = [
        Some(DEFAULT_PATH.to_owned()),
        hostname,
        terminal,
        Some(format!("HOME={}", user.home)),
    ];

    let mut environment = Environment::default();
    for variable in defaults.into_iter().flatten() {
        environment.set(variable);
    }
    for variable in &config.env {
        // Images with such lines run elsewhere; there is nothing that they could mean.
        if has_name(variable) {
            environment.set(variable.clone());
        } else {
            warn!(
                variable,
                "environment variable of the image without name or value left out"
            );
        }
    }
    for variable in &overrides.env {
        if !has_name(variable) {
            return Err(SpecError::Environment(variable.escape_debug().to_string()));
        }
        environment.set(variable.clone());
    }
    require_no_nul("the environment", &environment.variables)?;
    Ok(environment.variables)
}

fn has_name(variable: &str) -> bool {
    variable.find('=').is_some_and(|equals| equals > 0)
}

/// Variables of different names, in the order in which the names came.
#[derive(Default)]
struct Environment {
    variables: Vec<String>,
    places: std::collections::HashMap<String, usize>,
}

impl Environment {
    fn set(&mut self, variable: String) {
        let name = variable.split('=').next().unwrap_or_default().to_owned();
        match self.places.get(&name) {
            Some(place) => self.variables[*place] = variable,
            None => {
                self.places.insert(name, self.variables.len());
                self.variables.push(variable);
            }
        }
    }
}

fn working_directory(
    config: &ContainerConfig,
    overrides: &Overrides,
) -> Result<PathBuf, SpecError> {
    let path = match &overrides.workdir {
        Some(path) if !path.starts_with('/') => {
            return Err(SpecError::WorkingDirectory(path.escape_debug().to_string()));
        }
        Some(path) => path,
        // A relative one means below the root.
        None => &config.working_dir,
    };
    require_no_nul("the working directory", std::slice::from_ref(path))?;
    let mut clean = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    Ok(clean)
}

fn spec_user(user: &User) -> SpecUser {
    let mut spec_user = SpecUser::default();
    spec_user.set_uid(user.uid).set_gid(user.gid);
    if !user.additional_gids.is_empty() {
        spec_user.set_additional_gids(Some(user.additional_gids.clone()));
    }
    spec_user
}

/// Root has them; others can get them through programs that have them as file capabilities.
/// None are inheritable: that would give files' capabilities to unprivileged processes.
fn capabilities(user: &User) -> LinuxCapabilities {
    let all = Capabilities::from(CAPABILITIES);
    let own = if user.uid == 0 {
        all.clone()
    } else {
        Capabilities::new()
    };
    let mut capabilities = LinuxCapabilities::default();
    capabilities
        .set_bounding(Some(all))
        .set_permitted(Some(own.clone()))
        .set_effective(Some(own))
        .set_inheritable(Some(Capabilities::new()))
        .set_ambient(Some(Capabilities::new()));
    capabilities
}

fn open_files() -> PosixRlimit {
    let (soft, hard) = OPEN_FILES;
    PosixRlimitBuilder::default()
        .typ(PosixRlimitType::RlimitNofile)
        .soft(soft)
        .hard(hard)
        .build()
        .expect("a builder whose fields all have defaults, and that checks nothing, succeeds")
}

/// The kernel takes texts that end at their first NUL.
fn require_no_nul(what: &'static str, texts: &[String]) -> Result<(), SpecError> {
    if texts.iter().any(|text| text.contains('\0')) {
        Err(SpecError::Nul(what))
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[rstest]
    #[case::cmd("", "sh -l", "", "sh -l")]
    #[case::entrypoint("/init", "", "", "/init")]
    #[case::entrypoint_and_cmd("/init", "a b", "", "/init a b")]
    #[case::command_replaces_cmd("", "sh", "echo hello", "echo hello")]
    #[case::command_follows_the_entrypoint("/init", "a b", "c", "/init c")]
    fn command_line_is_put_together(
        #[case] entrypoint: &str,
        #[case] cmd: &str,
        #[case] command: &str,
        #[case] expected: &str,
    ) {
        let config = ContainerConfig {
            entrypoint: words(entrypoint),
            cmd: words(cmd),
            ..ContainerConfig::default()
        };
        let overrides = Overrides {
            command: words(command),
            ..Overrides::default()
        };

        assert_eq!(arguments(&config, &overrides), Ok(words(expected)));
    }

    fn environment_of(image: &[&str], wishes: &[&str]) -> Result<Vec<String>, SpecError> {
        let owned = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let config = ContainerConfig {
            env: owned(image),
            ..ContainerConfig::default()
        };
        let overrides = Overrides {
            env: owned(wishes),
            ..Overrides::default()
        };
        let user = User {
            home: "/root".to_owned(),
            ..User::default()
        };
        environment(&config, &overrides, &user)
    }

    #[rstest]
    #[case::defaults(&[], &[], &[DEFAULT_PATH, "HOME=/root"])]
    #[case::image_wins_over_defaults(&["PATH=/bin", "HOME=/x"], &[], &["PATH=/bin", "HOME=/x"])]
    #[case::user_wins_over_image(&["A=1", "B=2"], &["A=3"], &[DEFAULT_PATH, "HOME=/root", "A=3", "B=2"])]
    #[case::empty_value(&[], &["A="], &[DEFAULT_PATH, "HOME=/root", "A="])]
    #[case::value_with_equals(&[], &["A=b=c"], &[DEFAULT_PATH, "HOME=/root", "A=b=c"])]
    #[case::image_without_value(&["A", "=b"], &[], &[DEFAULT_PATH, "HOME=/root"])]
    fn environment_is_put_together(
        #[case] image: &[&str],
        #[case] wishes: &[&str],
        #[case] expected: &[&str],
    ) {
        assert_eq!(environment_of(image, wishes).unwrap(), expected);
    }

    #[rstest]
    #[case("A", SpecError::Environment("A".into()))]
    #[case("=a", SpecError::Environment("=a".into()))]
    #[case("A=b\0c", SpecError::Nul("the environment"))]
    fn bad_variable_is_refused(#[case] variable: &str, #[case] expected: SpecError) {
        assert_eq!(environment_of(&[], &[variable]), Err(expected));
    }

    #[test]
    fn terminal_brings_its_type() {
        let overrides = Overrides {
            terminal: true,
            ..Overrides::default()
        };

        let found = environment(&ContainerConfig::default(), &overrides, &User::default()).unwrap();

        assert!(found.contains(&"TERM=xterm".to_owned()));
    }

    #[rstest]
    #[case::none("", None, "/")]
    #[case::of_the_image("/srv", None, "/srv")]
    #[case::relative_of_the_image("srv/www", None, "/srv/www")]
    #[case::of_the_caller("/srv", Some("/tmp/"), "/tmp")]
    #[case::above_the_root("/../../a/../b/./c", None, "/b/c")]
    fn working_directory_is_made_absolute(
        #[case] image: &str,
        #[case] wish: Option<&str>,
        #[case] expected: &str,
    ) {
        let config = ContainerConfig {
            working_dir: image.into(),
            ..ContainerConfig::default()
        };
        let overrides = Overrides {
            workdir: wish.map(str::to_owned),
            ..Overrides::default()
        };

        assert_eq!(
            working_directory(&config, &overrides),
            Ok(PathBuf::from(expected))
        );
    }

    #[test]
    fn relative_wish_for_a_working_directory_is_refused() {
        let overrides = Overrides {
            workdir: Some("tmp".into()),
            ..Overrides::default()
        };

        let found = working_directory(&ContainerConfig::default(), &overrides);

        assert_eq!(found, Err(SpecError::WorkingDirectory("tmp".into())));
    }

    #[rstest]
    #[case::root(0, 14)]
    #[case::other(1000, 0)]
    fn only_root_starts_with_capabilities(#[case] uid: u32, #[case] expected: usize) {
        let found = capabilities(&User {
            uid,
            ..User::default()
        });

        assert_eq!(found.bounding().as_ref().unwrap().len(), 14);
        assert_eq!(found.effective().as_ref().unwrap().len(), expected);
        assert_eq!(found.permitted().as_ref().unwrap().len(), expected);
        assert!(found.inheritable().as_ref().unwrap().is_empty());
        assert!(found.ambient().as_ref().unwrap().is_empty());
    }
}
