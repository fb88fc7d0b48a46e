// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The container's process: command line, environment, directory, user, capabilities, limits.

use std::path::{Component, Path, PathBuf};

use oci_spec::runtime::{
    Capabilities, Capability, LinuxCapabilities, PosixRlimit, PosixRlimitBuilder, PosixRlimitType,
    Process, User as SpecUser,
};
use tracing::warn;

use super::{Container, Overrides, SpecError, TerminalSize};
use crate::image::ContainerConfig;
use crate::user::User;

/// What programs take a terminal for, unless the image or the user says otherwise.
const TERMINAL_KIND: &str = "TERM=xterm";
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
        .set_terminal(Some(overrides.terminal.is_some()))
        .set_console_size(overrides.terminal.and_then(TerminalSize::console_size))
        .set_user(spec_user(user))
        .set_args(Some(arguments(&config.config, overrides)?))
        .set_env(Some(environment(&config.config, overrides, user)?))
        .set_cwd(working_directory(&config.config, overrides)?)
        .set_capabilities(Some(capabilities(user)))
        .set_rlimits(Some(vec![open_files()]))
        .set_no_new_privileges(Some(false));
    Ok(process)
}

/// A further process of the container that runs `first`: as that but for the user's wishes. `user` is whom they name.
///
/// # Errors
/// Where there is no command, or a wish cannot be honoured.
pub fn exec(
    first: &Process,
    overrides: &Overrides,
    user: Option<&User>,
) -> Result<Process, SpecError> {
    check_arguments(&overrides.command)?;
    let inherited = first.env().iter().flatten().cloned();
    let terminal = overrides.terminal.map(|_| TERMINAL_KIND.to_owned());
    let home = user.map(|user| format!("HOME={}", user.home));
    // A kind of terminal that the container has is better than the usual one.
    let environment = Environment::new(terminal.into_iter().chain(inherited).chain(home));

    let mut process = first.clone();
    process
        .set_terminal(Some(overrides.terminal.is_some()))
        .set_console_size(overrides.terminal.and_then(TerminalSize::console_size))
        .set_args(Some(overrides.command.clone()))
        .set_env(Some(environment.finish(overrides)?));
    if overrides.workdir.is_some() {
        process.set_cwd(working_directory(&ContainerConfig::default(), overrides)?);
    }
    if let Some(user) = user {
        process
            .set_user(spec_user(user))
            .set_capabilities(Some(capabilities(user)));
    }
    Ok(process)
}

fn arguments(config: &ContainerConfig, overrides: &Overrides) -> Result<Vec<String>, SpecError> {
    let command = if overrides.command.is_empty() {
        &config.cmd
    } else {
        &overrides.command
    };
    let arguments: Vec<String> = config.entrypoint.iter().chain(command).cloned().collect();
    check_arguments(&arguments)?;
    Ok(arguments)
}

fn check_arguments(arguments: &[String]) -> Result<(), SpecError> {
    let program = arguments.first().ok_or(SpecError::NoCommand)?;
    if program.is_empty() {
        return Err(SpecError::EmptyCommand);
    }
    require_no_nul("the command line", arguments)
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
    let terminal = overrides.terminal.map(|_| TERMINAL_KIND.to_owned());
    let defaults = [
        Some(DEFAULT_PATH.to_owned()),
        hostname,
        terminal,
        Some(format!("HOME={}", user.home)),
    ];

    let mut environment = Environment::new(defaults.into_iter().flatten());
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
    environment.finish(overrides)
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
    fn new(variables: impl IntoIterator<Item = String>) -> Self {
        let mut environment = Self::default();
        for variable in variables {
            environment.set(variable);
        }
        environment
    }

    /// With what the user wishes, which has to make sense.
    fn finish(mut self, overrides: &Overrides) -> Result<Vec<String>, SpecError> {
        for variable in &overrides.env {
            if !has_name(variable) {
                return Err(SpecError::Environment(variable.escape_debug().to_string()));
            }
            self.set(variable.clone());
        }
        require_no_nul("the environment", &self.variables)?;
        Ok(self.variables)
    }

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
            terminal: Some(TerminalSize {
                columns: 80,
                rows: 25,
            }),
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

    fn first_process() -> Process {
        let mut first = Process::default();
        first
            .set_terminal(Some(false))
            .set_args(Some(words("sleep 1000")))
            .set_env(Some(words("PATH=/bin HOME=/root TERM=dumb")))
            .set_cwd(PathBuf::from("/work"))
            .set_capabilities(Some(capabilities(&User::default())));
        first
    }

    fn wishes(command: &str) -> Overrides {
        Overrides {
            command: words(command),
            ..Overrides::default()
        }
    }

    #[test]
    fn executed_command_is_as_the_first_but_for_the_wishes() {
        let overrides = Overrides {
            env: words("PATH=/opt/bin NEW=1"),
            workdir: Some("/tmp".to_owned()),
            terminal: Some(TerminalSize {
                columns: 80,
                rows: 25,
            }),
            ..wishes("sh -l")
        };

        let process = exec(&first_process(), &overrides, None).unwrap();

        assert_eq!(process.args(), &Some(words("sh -l")));
        let env = words("TERM=dumb PATH=/opt/bin HOME=/root NEW=1");
        assert_eq!(process.env(), &Some(env));
        assert_eq!(process.cwd(), Path::new("/tmp"));
        assert_eq!(process.terminal(), Some(true));
        assert_eq!(process.console_size().map(|size| size.height()), Some(25));
    }

    #[test]
    fn executed_command_inherits_directory_user_and_capabilities() {
        let first = first_process();

        let process = exec(&first, &wishes("id"), None).unwrap();

        assert_eq!(process.cwd(), first.cwd());
        assert_eq!(process.user(), first.user());
        assert_eq!(process.capabilities(), first.capabilities());
        assert_eq!(process.terminal(), Some(false));
    }

    #[test]
    fn executed_command_of_another_user_has_neither_roots_capabilities_nor_its_home() {
        let user = User {
            uid: 1000,
            gid: 100,
            home: "/home/me".to_owned(),
            ..User::default()
        };

        let process = exec(&first_process(), &wishes("id"), Some(&user)).unwrap();

        assert_eq!(process.user().uid(), 1000);
        let permitted = process.capabilities().as_ref().unwrap().permitted();
        assert_eq!(permitted, &Some(Capabilities::new()));
        assert!(
            process
                .env()
                .as_ref()
                .unwrap()
                .contains(&"HOME=/home/me".to_owned())
        );
    }

    #[test]
    fn nothing_to_execute_is_refused() {
        let error = exec(&first_process(), &wishes(""), None);

        assert_eq!(error, Err(SpecError::NoCommand));
    }

    #[test]
    fn nameless_command_is_not_executed() {
        let nameless = Overrides {
            command: vec![String::new(), "word".to_owned()],
            ..Overrides::default()
        };

        let error = exec(&first_process(), &nameless, None);

        assert_eq!(error, Err(SpecError::EmptyCommand));
    }
}
