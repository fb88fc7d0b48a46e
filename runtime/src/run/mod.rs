// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle run`: an image's container in a virtual machine of its own, from the command line to
//! its exit status.
//!
//! What happens, in order: the image is found and unpacked (once); the run gets directories and a
//! mount namespace of its own, with the tree that the guest sees; the machine is started; its
//! agent calls back, is given the container's specification, and starts it; streams and signals
//! go through until the container ends. Everything that was made is owned by a value here and
//! goes with it.

mod directory;
mod failure;
mod guest;
mod janitor;
mod listeners;
mod machine;
mod mounts;
mod origin;
mod patience;
mod processes;
mod removal;
mod signals;
mod stdio;
mod workdir;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use coracle_agent_api::SHARE_PATH;
use coracle_oci::plan::{Places, Request, SandboxPlan, VmShape};
use coracle_oci::spec::Overrides;
use coracle_oci::volume::Volume;
use coracle_vmm::EmptyNetwork;

use self::directory::RunDirectory;
use self::guest::{CommandFailed, Refused};
use self::listeners::Listeners;
use self::machine::Machine;
use self::origin::Tree;
use self::patience::{Interrupted, Patience};
use self::signals::Forwarding;
use crate::cli::{Directories, RunArguments};
use crate::guest_files::GuestFiles;
use crate::printable::printable;

/// Runs a container to its end and returns its exit status.
pub fn run(directories: &Directories, arguments: &RunArguments) -> Result<u8> {
    match run_container(directories, arguments) {
        Ok(status) => Ok(status),
        Err(error) => match (
            error.downcast_ref::<CommandFailed>(),
            error.downcast_ref::<Interrupted>(),
        ) {
            (Some(failed), _) => {
                eprintln!("coracle: {}", printable(&failed.to_string()));
                Ok(failed.status)
            }
            (None, Some(Interrupted(signal))) => Ok(u8::try_from(128 + signal).unwrap_or(u8::MAX)),
            (None, None) => Err(error),
        },
    }
}

fn run_container(directories: &Directories, arguments: &RunArguments) -> Result<u8> {
    let guest = GuestFiles::find(
        &directories.guest,
        arguments.kernel.as_deref(),
        arguments.initrd.as_deref(),
    );
    guest.open_kernel()?;
    guest.open_initramfs()?;
    require_kvm()?;
    let volumes = arguments
        .volume
        .iter()
        .map(Volume::with_existing_source)
        .collect::<Result<Vec<_>, _>>()?;

    // Directories come before threads: the janitor is a fork.
    let directory = RunDirectory::create(directories)?;
    let overrides = overrides(arguments, directory.id())?;
    let tree = Tree::find(&directories.root, arguments)?;
    // Until here a signal ends the process, and the janitor cleans up.
    let signals = Forwarding::catch()?;
    let network = EmptyNetwork::begin().context("cannot make a network namespace")?;
    let plan = SandboxPlan::new(Request {
        id: directory.id(),
        vm: VmShape {
            vcpus: arguments.cpus,
            memory_mib: arguments.memory,
        },
        config: &tree.config,
        overrides: &overrides,
        user: &tree.user(&overrides)?,
        volumes: &volumes,
        places: Places {
            lower: &tree.path,
            upper: &directory.upper(),
            work: &directory.work(),
            share: &directory.share(),
            guest_share: Path::new(SHARE_PATH),
        },
    })?;
    share(&plan, &directory)?;
    serve(&plan, &directory, &guest, network, arguments, signals)
}

/// Builds the tree that the guest sees: mount points on a mount that nobody can write to, and what is mounted there.
fn share(plan: &SandboxPlan, directory: &RunDirectory) -> Result<()> {
    mounts::enter_namespace()?;
    let rootfs = &plan.rootfs;
    mounts::make_point(&rootfs.lower, &rootfs.mount_point)?;
    for volume in &plan.volumes {
        mounts::make_point(&volume.source, &volume.mount_point)?;
    }
    mounts::seal(&directory.share())?;
    mounts::overlay(
        &rootfs.lower,
        &rootfs.upper,
        &rootfs.work,
        &rootfs.mount_point,
    )?;
    if let Some(process) = plan.spec.process() {
        workdir::make(&rootfs.mount_point, process.cwd())?;
    }
    for volume in &plan.volumes {
        mounts::bind(&volume.source, volume.read_only, &volume.mount_point)?;
    }
    Ok(())
}

/// Starts the machine and stays until its container has ended.
fn serve(
    plan: &SandboxPlan,
    directory: &RunDirectory,
    guest: &GuestFiles,
    network: EmptyNetwork,
    arguments: &RunArguments,
    signals: Forwarding,
) -> Result<u8> {
    let listeners = Listeners::bind(&directory.vsock())?;
    let mut machine = Machine::start(plan, directory, guest, network)?;
    let mut patience = Patience::new(arguments.boot_timeout, signals);
    let outcome = machine
        .wait_until_running(&mut patience)
        .and_then(|()| converse(plan, listeners, &machine, patience));
    outcome.map_err(|error| {
        // What the guest refused, or the user interrupted, needs no explanation.
        if error.is::<CommandFailed>() || error.is::<Interrupted>() || error.is::<Refused>() {
            error
        } else {
            machine.explain(error)
        }
    })
}

/// Everything that is said between the host and the agent.
fn converse(
    plan: &SandboxPlan,
    listeners: Listeners,
    machine: &Machine,
    mut patience: Patience,
) -> Result<u8> {
    let spec =
        serde_json::to_vec(&plan.spec).context("cannot write the container's specification")?;
    let mut guest = listeners.agent.connect(&mut patience, machine.control())?;
    guest.create(&plan.id, spec, &mut patience)?;
    let streams = listeners.streams.accept(&mut patience, machine.control())?;
    let stdout = stdio::Output::start("stdout", streams.stdout, std::io::stdout())?;
    let stderr = stdio::Output::start("stderr", streams.stderr, std::io::stderr())?;
    guest.start(&mut patience)?;
    stdio::start_input(streams.stdin)?;
    let status = guest.wait(patience.into_signals())?;
    stdout.finish()?;
    stderr.finish()?;
    Ok(status)
}

/// Fails early and clearly where no virtual machine can be started.
fn require_kvm() -> Result<()> {
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
        .context("cannot open /dev/kvm (coracle check says what to do)")
}

fn overrides(arguments: &RunArguments, hostname: &str) -> Result<Overrides> {
    let (_, command) = arguments.origin_and_command();
    Ok(Overrides {
        command,
        env: arguments
            .env
            .iter()
            .filter_map(|variable| with_value(variable))
            .collect(),
        workdir: arguments.workdir.clone(),
        user: arguments.user.clone(),
        hostname: Some(hostname.to_owned()),
        terminal: false,
    })
}

/// `KEY=VALUE`, with the caller's value where only a key is given; nothing where the caller has none.
fn with_value(variable: &str) -> Option<String> {
    if variable.contains('=') {
        return Some(variable.to_owned());
    }
    std::env::var(variable)
        .ok()
        .map(|value| format!("{variable}={value}"))
}
