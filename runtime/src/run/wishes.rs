// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the user wants, from the words of the command line.

use std::env::{self, VarError};
use std::path::{Path, PathBuf};

use anyhow::{Context, Error, Result, bail};
use coracle_oci::disk::Disk;
use coracle_oci::image::ImageConfig;
use coracle_oci::plan::{self, SandboxPlan, VmShape};
use coracle_oci::spec::{Overrides, TerminalSize};
use coracle_oci::user::User;
use coracle_vmm::VHOST_USER_UID;

use super::network;
use crate::cli::{Origin, RunArguments};
use crate::config::Config;
use crate::container::{Id, Record, RunDirectory, Status, Time};
use crate::{signal_names, terminal};

/// Refuses what no image could make good, before one is pulled.
pub fn check(arguments: &RunArguments, config: &Config) -> Result<()> {
    network::check(&arguments.network, config)?;
    let mut overrides = overrides(arguments, None)?;
    // The image may have one, which what is given is told to.
    overrides.command.insert(0, "true".to_owned());
    let nowhere = Path::new("/");
    let rehearsed = SandboxPlan::new(plan::Request {
        id: "rehearsal",
        vm: vm_shape(arguments, config),
        config: &ImageConfig::default(),
        overrides: &overrides,
        user: &User::default(),
        volumes: &arguments.volume,
        disks: &arguments.disk,
        served_disks: &served_disks(arguments),
        places: plan::Places {
            lower: nowhere,
            upper: nowhere,
            work: nowhere,
            share: nowhere,
            guest_share: nowhere,
        },
    });
    Ok(rehearsed.map(drop)?)
}

/// The disks that other processes serve, with the guest's names for them, which are by their numbers in the machine.
pub fn served_disks(arguments: &RunArguments) -> Vec<(Disk, String)> {
    let disks = arguments.vhost_user_blk.iter().cloned();
    disks
        .zip(VHOST_USER_UID..)
        .map(|(disk, uid)| (disk, format!("acpi-{uid}")))
        .collect()
}

/// The size of the machine.
pub fn vm_shape(arguments: &RunArguments, config: &Config) -> VmShape {
    VmShape {
        vcpus: arguments.cpus.unwrap_or(config.run.cpus),
        memory_mib: arguments.memory.unwrap_or(config.run.memory_mib),
    }
}

/// What is known of a container when it is only an intention.
pub fn record(directory: &RunDirectory, arguments: &RunArguments) -> Record {
    let id = directory.id().clone();
    Record {
        name: arguments
            .name
            .as_ref()
            .map_or_else(|| id.to_string(), |name| name.as_str().to_owned()),
        id,
        image: match arguments.origin_and_command().0 {
            Origin::Image(name) => name.to_owned(),
            Origin::Rootfs(path) => path.display().to_string(),
        },
        tree: PathBuf::new(),
        created: Time::now(),
        status: Status::Starting {
            runner: std::process::id(),
        },
        remove: arguments.remove,
        stop_signal: libc::SIGTERM,
        plan: None,
        networks: Vec::new(),
        addresses: Vec::new(),
        ports: Vec::new(),
    }
}

/// What is wanted otherwise than the image has it, for a container whose host name is `hostname` unless it is named.
pub fn overrides(arguments: &RunArguments, hostname: Option<&Id>) -> Result<Overrides> {
    let (_, command) = arguments.origin_and_command();
    let named = arguments.hostname.clone();
    Ok(Overrides {
        command,
        env: with_values(&arguments.env)?,
        workdir: arguments.workdir.clone(),
        user: arguments.user.clone(),
        hostname: named.or_else(|| hostname.map(Id::to_string)),
        terminal: arguments.tty.then(|| terminal_size(arguments.detach)),
    })
}

/// The size of the container's terminal: ours, if there is somebody at it.
fn terminal_size(detached: bool) -> TerminalSize {
    let size = (!detached).then(terminal::our_size).flatten();
    TerminalSize {
        columns: size.map_or(0, |size| size.columns),
        rows: size.map_or(0, |size| size.rows),
    }
}

/// Each `KEY=VALUE`, with the caller's value where only a key is given; nothing where the caller has none.
///
/// # Errors
///
/// Where the caller's value is not UTF-8, and can therefore not be told.
pub fn with_values(variables: &[String]) -> Result<Vec<String>> {
    let with_value = |variable: &String| {
        if variable.contains('=') {
            return Ok(Some(variable.clone()));
        }
        match env::var(variable) {
            Ok(value) => Ok(Some(format!("{variable}={value}"))),
            Err(VarError::NotPresent) => Ok(None),
            Err(VarError::NotUnicode(_)) => {
                bail!("the value of the environment variable {variable} is not UTF-8")
            }
        }
    };
    variables
        .iter()
        .filter_map(|variable| with_value(variable).transpose())
        .collect()
}

/// The signal by which an image wants to be stopped.
pub fn stop_signal(named: &str) -> Result<i32> {
    if named.is_empty() {
        return Ok(libc::SIGTERM);
    }
    signal_names::parse(named)
        .map_err(Error::msg)
        .context("the image names a signal to stop it that cannot be sent")
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::process::Command;

    use clap::Parser;
    use rstest::rstest;

    use super::*;

    fn check_words(words: &[&str]) -> Result<()> {
        #[derive(Parser)]
        struct Line {
            #[command(flatten)]
            run: RunArguments,
        }
        let words = [&["coracle"], words].concat();
        check(&Line::parse_from(words).run, &Config::of_nothing())
    }

    #[rstest]
    #[case::memory(&["--memory=1", "image"], "1 MiB are not a virtual machine's memory: it takes 96 to 16777216")]
    #[case::hostname(&["--hostname=a b", "image"], "`a b` is not a host name of 1 to 64 letters, digits, dots, dashes and underscores")]
    #[case::volumes(&["-v/a:/d", "-v/b:/d", "image"], "two volumes or disks have the destination /d")]
    #[case::workdir(&["-w=tmp", "image"], "working directory `tmp` is not an absolute path")]
    #[case::variable(&["-e==x", "image"], "environment variable `=x` is not of the form NAME=VALUE")]
    #[case::gateway(&["--network=host-nat", "--gateway=10.0.0.1", "image"], "network host-nat takes no gateway from the user: it has its own")]
    #[case::port(&["--network=none", "-p=80", "image"], "--publish needs a network, and the container has none")]
    fn what_no_image_makes_good_is_refused(#[case] words: &[&str], #[case] expected: &str) {
        assert_eq!(check_words(words).unwrap_err().to_string(), expected);
    }

    #[test]
    fn image_may_have_the_command() {
        check_words(&["--memory=128", "--hostname=web", "image"]).unwrap();
    }

    #[test]
    fn variables_have_the_callers_values_where_it_has_some() {
        let [given, taken, missing] = ["A=b", "PATH", "CORACLE_TEST_OF_NONE"].map(str::to_owned);

        let found = with_values(&[given, taken, missing]).unwrap();

        let path = format!("PATH={}", env::var("PATH").unwrap());
        assert_eq!(found, ["A=b".to_owned(), path]);
    }

    #[test]
    fn value_that_is_no_text_is_refused_by_name() {
        const NAME: &str = "CORACLE_TEST_BYTES";
        let own_name = "run::wishes::tests::value_that_is_no_text_is_refused_by_name";
        // The environment of a process with threads is not to be changed: the test runs again in one that has it.
        let Some(value) = env::var_os(NAME) else {
            let again = Command::new(env::current_exe().unwrap())
                .args([own_name, "--exact"])
                .env(NAME, OsString::from_vec(vec![0xff]))
                .output()
                .unwrap();
            assert!(again.status.success(), "{again:?}");
            return;
        };

        let error = with_values(&[NAME.to_owned()]).unwrap_err();

        assert_eq!(value.into_vec(), [0xff]);
        assert!(error.to_string().contains(NAME), "{error}");
    }
}
