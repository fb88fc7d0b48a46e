// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! `coracle run`: an image's container in a virtual machine of its own, from the command line to
//! its exit status.
//!
//! What happens, in order: the image is found and unpacked (once); the run gets directories and a
//! mount namespace of its own, with the tree that the guest sees; the machine is started; its
//! agent calls back, is given the container's specification, and starts it; streams, signals and
//! what other processes ask go through until the container ends. Everything that was made is
//! owned by a value here and goes with it.

mod detach;
mod devices;
mod etc;
mod failure;
mod gdb;
mod guest;
mod listeners;
mod loop_devices;
mod machine;
pub mod mounts;
mod network;
mod origin;
mod patience;
mod processes;
mod share;
mod signals;
mod supervise;
mod tree;
mod vmm;
mod wishes;

use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Error, Result, ensure};
use coracle_agent_api::SHARE_PATH;
use coracle_network::Attachment;
use coracle_oci::plan::{self, SandboxPlan};
use coracle_oci::store::Lease;
use coracle_oci::volume::Volume;
use coracle_vmm::EmptyNetwork;
use tracing::warn;

use self::detach::Ready;
use self::devices::Devices;
use self::failure::Failure;
use self::guest::{CommandFailed, Guest};
use self::listeners::{AgentListener, Shape, StreamListeners, StreamPorts, Streams};
use self::machine::Machine;
use self::mounts::Written;
use self::origin::Tree;
use self::patience::{Interrupted, Patience};
use self::supervise::{End, Supervisor};
use crate::cli::{Directories, RunArguments};
use crate::config::Config;
use crate::container::{Containers, Heard, Record, RunDirectory, Status, Time};
use crate::control::Listener;
use crate::guest_files::GuestFiles;
use crate::output::{Log, Output, Rest, Sink, Stream, start_input};
use crate::printable::{printable, shortened};
use crate::terminal::Keeper;
use crate::{EXIT_CUT_OFF, EXIT_FAILURE, log};

pub use self::listeners::through_descriptor;
pub use self::signals::Forwarding;
pub use self::wishes::with_values;

/// Runs a container, to its end or to its start in the background, and returns the status to exit with.
pub fn run(directories: &Directories, config: &Config, arguments: &RunArguments) -> Result<u8> {
    check(directories, config, arguments)?;
    let place = Place {
        directories,
        config,
        arguments,
    };
    let outcome = if arguments.detach {
        detach::in_background(|ready| run_container(place, None, Some(ready)))
    } else {
        let keeper = match arguments.tty && arguments.interactive {
            true => Keeper::start()?,
            false => None,
        };
        run_container(place, keeper, None)
    };
    outcome.or_else(|error| status_of(&error).map(Ok).unwrap_or(Err(error)))
}

/// What a run goes by.
#[derive(Clone, Copy)]
struct Place<'r> {
    directories: &'r Directories,
    config: &'r Config,
    arguments: &'r RunArguments,
}

fn run_container(place: Place<'_>, keeper: Option<Keeper>, ready: Option<Ready>) -> Result<u8> {
    let (run, live) = Run::prepare(place, keeper, ready)?;
    run.live(live)
}

/// Fails early and clearly where nothing can come of it.
fn check(directories: &Directories, config: &Config, arguments: &RunArguments) -> Result<()> {
    ensure!(
        !(arguments.interactive && arguments.tty && !arguments.detach) || io::stdin().is_terminal(),
        "standard input is not a terminal, so the container's cannot be one (leave out -t)"
    );
    wishes::check(arguments, config)?;
    for disk in &arguments.disk {
        devices::find_disk(&disk.source)?;
    }
    let guest = guest_files(directories, arguments);
    guest.open_kernel()?;
    guest.open_initramfs()?;
    fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .map(drop)
        .context("cannot open /dev/kvm (coracle check says what to do)")
}

/// The exit status that tells an error which is the container's or the user's own; the message goes with it.
fn status_of(error: &Error) -> Option<u8> {
    if let Some(failed) = error.downcast_ref::<CommandFailed>() {
        log::tell(format_args!("coracle: {}", printable(&failed.to_string())));
        return Some(failed.status);
    }
    let Interrupted(signal) = error.downcast_ref()?;
    Some(u8::try_from(128 + signal).unwrap_or(u8::MAX))
}

/// A run for which all is prepared that does not take a machine.
struct Run<'r> {
    place: Place<'r>,
    /// Gives the user's terminal back.
    keeper: Option<Keeper>,
    log: Option<Log>,
    plan: SandboxPlan,
    // After the machine's processes, which have its taps open.
    attachment: Option<Attachment>,
    /// What the container starts from stays in the store while it runs.
    _lease: Option<Lease>,
    record: Record,
    directory: RunDirectory,
}

/// What is used up by a run's life.
struct Live {
    listener: Listener,
    /// What the machine's processes are shut into.
    jail: EmptyNetwork,
    /// They come once something is made that does not end with this process.
    signals: Forwarding,
    ready: Option<Ready>,
}

impl<'r> Run<'r> {
    /// Finds the image, makes the run's directories, and mounts what the guest is to see.
    fn prepare(
        place: Place<'r>,
        keeper: Option<Keeper>,
        ready: Option<Ready>,
    ) -> Result<(Self, Live)> {
        let Place {
            directories,
            config,
            arguments,
        } = place;
        let volumes = arguments
            .volume
            .iter()
            .map(Volume::with_existing_source)
            .collect::<Result<Vec<_>, _>>()?;
        let places = directories.places().with_networks(config);
        // Directories come before threads: the janitor is a fork.
        let heard = match ready {
            None => Heard::Now,
            Some(_) => Heard::Later,
        };
        let directory = RunDirectory::create(&places, heard)?;
        let mut record = wishes::record(&directory, arguments);
        directory.announce(arguments.name.as_ref(), &record)?;
        let overrides = wishes::overrides(arguments, Some(directory.id()))?;
        let tree = Tree::find(&directories.root, config, arguments)?;
        let jail = EmptyNetwork::begin().context("cannot make a network namespace")?;
        let plan = SandboxPlan::new(plan::Request {
            id: directory.id().as_str(),
            vm: wishes::vm_shape(arguments, config),
            config: &tree.config,
            overrides: &overrides,
            user: &tree.user(&overrides)?,
            volumes: &volumes,
            disks: &arguments.disk,
            served_disks: &wishes::served_disks(arguments),
            places: plan::Places {
                lower: &tree.path,
                upper: &directory.upper(),
                work: &directory.work(),
                share: &directory.share(),
                guest_share: Path::new(SHARE_PATH),
            },
        })?;
        record.stop_signal = tree.stop_signal()?;
        let written = serde_json::to_value(&plan);
        record.plan = Some(written.context("the container's plan cannot be written down")?);
        record.tree = tree.path;
        let log = arguments
            .is_logged()
            .then(|| Log::create(directory.container(), config.log_limit))
            .transpose()?;
        let listener = Listener::bind(directory.state())?;
        let written = match arguments.remove {
            true => Written::GoesWithTheRun,
            false => Written::Stays,
        };
        share::make(
            &plan,
            written,
            &directory,
            &guest_files(directories, arguments),
        )?;
        let networks = arguments.network.networks(config)?;
        // Until here a signal ends the process, and the janitor clears up beside nothing that goes on.
        let mut signals = Forwarding::catch_ending()?;
        let attachment = network::make(
            directory.id(),
            &arguments.network,
            config,
            &mut signals,
            &Containers::new(places.clone()),
        )?;
        // From here on one ends the process again, whatever that waits for.
        signals.release();
        if let Some(signal) = signals.pending() {
            return Err(Interrupted(signal).into());
        }
        record.note_network(&networks, attachment.as_ref());
        // One that cannot be written down is refused before its command has run.
        record.write(directory.container())?;
        etc::write(&plan, directory.id(), attachment.as_ref())?;
        record.reserve(directory.container())?;
        let ready = ready
            .map(|ready| ready.leaving_messages(directory.container()))
            .transpose()?;
        let live = Live {
            listener,
            jail,
            signals,
            ready,
        };
        let run = Self {
            place,
            keeper,
            log,
            plan,
            attachment,
            _lease: tree.lease,
            record,
            directory,
        };
        Ok((run, live))
    }

    /// Starts the machine and stays until its container has ended; returns the container's status.
    fn live(mut self, live: Live) -> Result<u8> {
        let outcome = self.serve(live);
        if let Err(error) = &outcome {
            let reason = shortened(&printable(&format!("{error:#}")));
            note_end(
                &mut self.record,
                self.directory.container(),
                EXIT_FAILURE,
                Some(reason),
            );
        }
        outcome
    }

    fn serve(&mut self, live: Live) -> Result<u8> {
        let Live {
            listener,
            jail,
            mut signals,
            ready,
        } = live;
        let guest = guest_files(self.place.directories, self.place.arguments);
        let vsock = self.directory.vsock();
        let agent = AgentListener::bind(&vsock)?;
        let ports = StreamPorts::of_first(self.shape());
        let streams = StreamListeners::bind(&vsock, ports)?;
        let arguments = self.place.arguments;
        let gdb = arguments.gdb.as_deref();
        let gdb = gdb.map(gdb::Socket::bind).transpose()?;
        let attachment = self.attachment.as_ref();
        let devices = Devices::open(&self.plan, arguments, attachment, gdb.as_ref())?;
        let messages = ready.as_ref().map(Ready::messages);
        signals.catch_rest()?;
        let mut machine =
            Machine::start(&self.plan, &self.directory, &guest, devices, jail, messages)?;
        let mut patience = Patience::new(self.boot_timeout(), signals);
        let begun = machine.wait_until_running(&mut patience).and_then(|()| {
            let guest = agent.connect(&mut patience, machine.control())?;
            self.create(guest, streams, ports, &mut patience)
        });
        let outcome = begun.map_err(Failure::Guests).and_then(|(guest, streams)| {
            self.converse(guest, streams, &machine, &listener, patience, ready)
        });
        outcome.map_err(|failure| match failure {
            Failure::Ours(error) => error,
            Failure::Guests(error) => machine.explain(error),
        })
    }

    /// Has the guest make the container, whose streams are connected then.
    fn create<'g>(
        &self,
        mut guest: Guest<'g>,
        listeners: StreamListeners,
        ports: StreamPorts,
        patience: &mut Patience,
    ) -> Result<(Guest<'g>, Streams)> {
        let id = self.directory.id().as_str();
        let served = &self.place.arguments.vhost_user_net;
        let sandbox = network::sandbox(id, self.attachment.as_ref(), served);
        guest.set_up(id, sandbox, patience)?;
        guest.create(&self.plan, ports, patience)?;
        Ok((guest, listeners.accept()?))
    }

    /// Has the guest start the container's command, and stays until that has ended and all that it put out is through;
    /// returns its status.
    fn converse(
        &mut self,
        mut guest: Guest<'_>,
        streams: Streams,
        machine: &Machine,
        listener: &Listener,
        mut patience: Patience,
        ready: Option<Ready>,
    ) -> Result<u8, Failure> {
        let silent = self.place.arguments.detach;
        let stdout = self.output(Stream::Stdout, streams.stdout, (!silent).then(io::stdout))?;
        let stderr = streams
            .stderr
            .map(|stream| self.output(Stream::Stderr, stream, (!silent).then(io::stderr)))
            .transpose()?;
        guest.start(&mut patience).map_err(Failure::Guests)?;
        self.started(ready)?;
        // In the background there is nobody to type: the stream stays open, and nothing comes.
        let mut stdin = streams.stdin;
        if let Some(stream) = stdin.take_if(|_| !silent) {
            start_input(stream)?;
        }
        let vsock = self.directory.vsock();
        let signals = patience.into_signals();
        let name = &self.record.name;
        let mut supervisor = Supervisor::new(guest, machine, &self.plan, &vsock, name, signals);
        let end = supervisor.run(listener).map_err(Failure::Guests)?;
        let mut signals = supervisor.into_signals();
        let container = self.directory.container();
        match end {
            End::CutOff => {
                let reason = "its machine was ended".to_owned();
                note_end(&mut self.record, container, EXIT_CUT_OFF, Some(reason));
                Ok(EXIT_CUT_OFF)
            }
            End::Exited {
                status,
                out_of_memory,
            } => {
                // Before its output is through: a reader that stands still keeps nobody from knowing.
                let reason = out_of_memory.then(|| "out of memory".to_owned());
                note_end(&mut self.record, container, status, reason);
                let rest = Rest::new([stdout].into_iter().chain(stderr));
                supervise::finish(rest, listener, &mut signals)?;
                Ok(status)
            }
        }
    }

    /// The container's command runs.
    fn started(&mut self, ready: Option<Ready>) -> Result<()> {
        self.record.status = Status::Running {
            since: Time::now(),
            runner: std::process::id(),
        };
        self.record.write(self.directory.container())?;
        if let Err(error) = self.record.reserve(self.directory.container()) {
            warn!("the container's end may not be recorded: {error:#}");
        }
        if let Some(keeper) = &self.keeper {
            keeper.make_raw()?;
        }
        ready.map_or(Ok(()), |ready| ready.tell(self.directory.id()))
    }

    /// Begins to hand on what comes from `guest`: into the log, and to a stream of ours.
    fn output(&self, stream: Stream, guest: UnixStream, ours: Option<impl AsFd>) -> Result<Output> {
        let sink = Sink::default().logged(self.log.as_ref(), stream);
        let sink = match ours {
            Some(ours) => sink.to(ours)?,
            None => sink,
        };
        Output::start(stream, guest, sink)
    }

    /// How long the guest may take to start; a debugger may stop it for as long as it likes.
    fn boot_timeout(&self) -> Option<Duration> {
        let arguments = self.place.arguments;
        let named = arguments.boot_timeout;
        let timeout = named.unwrap_or(self.place.config.run.boot_timeout);
        arguments.gdb.is_none().then_some(timeout)
    }

    fn shape(&self) -> Shape {
        Shape {
            stdin: self.place.arguments.interactive,
            terminal: self.place.arguments.tty,
        }
    }
}

/// Has the record in `container` say how its command has ended, if it ran and that is not known yet. Whether it can be
/// recorded or not, whoever waits for the container is told.
fn note_end(record: &mut Record, container: &Path, status: u8, reason: Option<String>) {
    if !matches!(record.status, Status::Running { .. }) {
        return;
    }
    record.status = Status::Exited {
        at: Time::now(),
        status,
        reason,
    };
    if let Err(error) = record.write(container) {
        warn!("the container's end is not recorded: {error:#}");
    }
}

fn guest_files(directories: &Directories, arguments: &RunArguments) -> GuestFiles {
    GuestFiles::find(
        &directories.guest,
        arguments.kernel.as_deref(),
        arguments.initrd.as_deref(),
    )
}
