// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The virtual machine of a run: the process that is it, the process that serves its files, and
//! what can be learnt from both when it fails.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use coracle_agent_api::SHARE_TAG;
use coracle_oci::plan::SandboxPlan;
use coracle_vmm::role::Event;
use coracle_vmm::{Config, Disk, EmptyNetwork, Exit, Net, Share, Vsock};
use rustix::fs::{MemfdFlags, memfd_create};

use super::devices::Devices;
use super::failure;
use super::guest::{CommandFailed, Refused};
use super::listeners::{SOCKET, through_descriptor};
use super::patience::{Interrupted, Patience, TimedOut};
use super::processes::{FIRST_FD, RoleProcess};
use super::vmm::VmmControl;
use crate::container::RunDirectory;
use crate::guest_files::GuestFiles;
use crate::roles::Role;

/// What every guest's kernel is told, besides what its plan says.
///
/// Mounts, namespaces and cgroups do not wait for RCU's leisurely grace periods. Most other words keep the kernel from
/// probing what this machine does not have.
const COMMAND_LINE: &str = "quiet console=hvc0 reboot=k tsc=reliable no_timer_check pci=off random.trust_cpu=on \
                            rcupdate.rcu_expedited=1";
/// What a kernel is told as well that does not come with words of its own.
///
/// Errors from before the console's driver go to the serial port. That the formats of trace events name numbers by
/// words, and that each kind of kernel memory has a directory in sysfs, which nobody reads in a sandbox, would be a
/// tenth of the boot.
const DISTRIBUTIONS: &str = "earlycon=uart8250,io,0x3f8 8250.nr_uarts=0 i8042.noaux i8042.nomux i8042.dumbkbd \
                             cryptomgr.notests initcall_blacklist=trace_eval_init,slab_sysfs_init";
/// What the kernel of a machine with one processor is told as well: to leave in the code what only more need, which is
/// cheaper than to take it out at each boot.
const ONE_PROCESSOR: &str = "noreplace-smp";
/// The guest's address on vsock: each machine has its sockets to itself, so all may have the same.
const GUEST_CID: u64 = 3;
/// How long after a first sign of failure the VMM may take to say what happened.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// How long the VMM may take to be gone after it closed its socket.
const DYING: Duration = Duration::from_secs(1);
/// The most that is read of the guest's console.
const READ_LIMIT: u64 = 1 << 20;

/// A started machine. Dropping it ends its processes.
pub struct Machine {
    control: VmmControl,
    console: File,
    /// What is typed into the console comes from here.
    keyboard: UnixStream,
    kernel: PathBuf,
    vmm: RoleProcess,
    fs: RoleProcess,
}

impl Machine {
    /// Starts the machine of `plan` with the shared tree of `directory`, which is in place. What its processes have to
    /// say goes to `messages`, or where our own goes.
    pub fn start(
        plan: &SandboxPlan,
        directory: &RunDirectory,
        guest: &GuestFiles,
        devices: Devices,
        network: EmptyNetwork,
        messages: Option<&File>,
    ) -> Result<Self> {
        let kernel = guest.open_kernel()?;
        let initramfs = guest.open_initramfs()?;
        let command_line = guest.command_line()?;
        let network = network
            .finish()
            .context("cannot make a network namespace")?;
        let (fs, share) = start_fs(directory, plan.vm.memory_mib, network.as_fd(), messages)?;
        let console = memfd_create("console", MemfdFlags::CLOEXEC)
            .context("cannot make the console's log")?;
        let (control, theirs) = VmmControl::pair()?;
        let (keyboard, input) = UnixStream::pair().context("cannot make the console's input")?;
        let serial = console
            .try_clone()
            .context("cannot duplicate the console's log")?;
        let log = console
            .try_clone()
            .context("cannot duplicate the console's log")?;
        let (descriptors, config) = Numbered::new(theirs.into()).config(
            plan,
            directory,
            Files {
                kernel: kernel.into(),
                initramfs: initramfs.into(),
                command_line,
                serial,
                console: log,
                keyboard: input.into(),
                share: share.into(),
                network,
                devices,
            },
        );
        let vmm = RoleProcess::start(Role::Vmm, &[], descriptors, messages)?;
        let mut machine = Self {
            control,
            console: console.into(),
            keyboard,
            kernel: guest.kernel.clone(),
            vmm,
            fs,
        };
        machine
            .control
            .configure(&config)
            .map_err(|error| machine.explain(error))?;
        Ok(machine)
    }

    /// The processes of the host that the machine is.
    pub fn processes(&self) -> [u32; 3] {
        [std::process::id(), self.vmm.id(), self.fs.id()]
    }

    /// What is readable when the VMM has something to say: if nothing was asked for, that is the guest's end.
    pub fn control(&self) -> BorrowedFd<'_> {
        self.control.as_fd()
    }

    /// Waits until the guest runs.
    pub fn wait_until_running(&self, patience: &mut Patience) -> Result<()> {
        patience.wait(self.control.as_fd(), None)?;
        match self.control.event(LAST_WORDS) {
            Some(Event::Running) => Ok(()),
            event => {
                self.control.put_back(event);
                bail!("the VMM does not run the guest");
            }
        }
    }

    /// What is said to the VMM, and by it, while the guest runs.
    pub fn vmm(&self) -> &VmmControl {
        &self.control
    }

    /// The console's log, which is read from any place, and what is typed into the console.
    pub fn console(&self) -> [BorrowedFd<'_>; 2] {
        [self.console.as_fd(), self.keyboard.as_fd()]
    }

    /// The reason for `error`, a failure to get along with the guest, as far as it can be found. What the guest refused,
    /// or the user interrupted, needs none.
    pub fn explain(&mut self, error: anyhow::Error) -> anyhow::Error {
        if error.is::<CommandFailed>() || error.is::<Interrupted>() || error.is::<Refused>() {
            return error;
        }
        let hang = error
            .is::<TimedOut>()
            .then(|| self.control.hang())
            .flatten();
        let error = match hang {
            Some(hang) => anyhow!("{error:#}: {hang}"),
            None => error,
        };
        let event = self.control.event(LAST_WORDS);
        // Each of the two ends when the other does: the one that failed is the cause.
        let patience = match event {
            Some(Event::Exit { .. }) => Duration::ZERO,
            // It may have hung up before it can be waited for; when it is well, it ends with the VMM.
            _ => DYING,
        };
        if let Some(failed) = self.fs.failed(patience) {
            return anyhow!(failed);
        }
        let reason = match event {
            Some(Event::Error { message }) => {
                return anyhow!(
                    "the virtual machine with the kernel {} failed: {message}",
                    self.kernel.display()
                );
            }
            Some(Event::Exit { reason }) => self.explain_exit(reason),
            // It is on its way out if it closed its socket without a word, or it runs on.
            _ => match self.vmm.failed(DYING) {
                // What the guest said until then has no part in that.
                Some(failed) => return anyhow!(failed),
                None => error,
            },
        };
        match failure::tail(&self.console_text()) {
            tail if tail.is_empty() => reason,
            tail => anyhow!("{reason:#}\n{}", tail.trim_end()),
        }
    }

    fn explain_exit(&mut self, reason: Exit) -> anyhow::Error {
        anyhow!(failure::of_exit(reason, &self.console_text()))
    }

    fn console_text(&mut self) -> String {
        let mut bytes = Vec::new();
        // What cannot be read is not shown.
        let _ = self.console.seek(SeekFrom::Start(0));
        let _ = (&self.console).take(READ_LIMIT).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

#[cfg(test)]
impl Machine {
    /// A machine without a guest, and its VMM's end of the control socket. No test has the name of a role, so that its
    /// processes end at once.
    pub fn empty() -> (Self, UnixStream) {
        let (control, vmm) = VmmControl::pair().unwrap();
        let machine = Self {
            control,
            console: memfd_create("console", MemfdFlags::CLOEXEC).unwrap().into(),
            keyboard: UnixStream::pair().unwrap().0,
            kernel: PathBuf::new(),
            vmm: RoleProcess::start(Role::Vmm, &[], Vec::new(), None).unwrap(),
            fs: RoleProcess::start(Role::Fs, &[], Vec::new(), None).unwrap(),
        };
        (machine, vmm)
    }
}

/// Starts the process that serves the shared tree to a guest with so much memory; returns a connection to it.
fn start_fs(
    directory: &RunDirectory,
    memory_mib: u64,
    network: BorrowedFd<'_>,
    messages: Option<&File>,
) -> Result<(RoleProcess, UnixStream)> {
    let path = directory.fs_socket();
    let listener = through_descriptor(&path, UnixListener::bind)
        .with_context(|| format!("cannot listen on {}", path.display()))?;
    // The connection waits to be accepted, so nobody has to wait for the process to be ready.
    let connection = through_descriptor(&path, UnixStream::connect)
        .with_context(|| format!("cannot connect to {}", path.display()))?;
    fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
    let share = File::open(directory.share()).context("cannot open the shared directory")?;
    let network = network
        .try_clone_to_owned()
        .context("cannot duplicate the network namespace")?;
    Ok((
        RoleProcess::start(
            Role::Fs,
            &[memory_mib.to_string()],
            vec![listener.into(), share.into(), network],
            messages,
        )?,
        connection,
    ))
}

/// What the guest's kernel is told.
fn command_line(plan: &SandboxPlan, own: Option<&str>) -> String {
    let one_processor = (plan.vm.vcpus == 1).then_some(ONE_PROCESSOR);
    [COMMAND_LINE, own.unwrap_or(DISTRIBUTIONS)]
        .into_iter()
        .chain(one_processor)
        .chain(plan.kernel_arguments.iter().map(String::as_str))
        .collect::<Vec<_>>()
        .join(" ")
}

/// The files of a machine.
struct Files {
    kernel: OwnedFd,
    initramfs: OwnedFd,
    /// What this kernel is told of its own.
    command_line: Option<String>,
    console: OwnedFd,
    keyboard: OwnedFd,
    serial: OwnedFd,
    share: OwnedFd,
    network: OwnedFd,
    devices: Devices,
}

/// Descriptors in the order of their numbers in the VMM's process.
struct Numbered(Vec<OwnedFd>);

impl Numbered {
    fn new(first: OwnedFd) -> Self {
        Self(vec![first])
    }

    /// The number that `descriptor` will have.
    fn add(&mut self, descriptor: OwnedFd) -> i32 {
        let number = self.0.len();
        self.0.push(descriptor);
        FIRST_FD + i32::try_from(number).unwrap_or(i32::MAX)
    }

    /// What each thing becomes where its descriptor is a number.
    fn add_all<T, N>(
        &mut self,
        things: Vec<T>,
        number: impl Fn(T, &mut dyn FnMut(OwnedFd) -> i32) -> N,
    ) -> Vec<N> {
        things
            .into_iter()
            .map(|thing| number(thing, &mut |descriptor| self.add(descriptor)))
            .collect()
    }

    fn config(
        mut self,
        plan: &SandboxPlan,
        directory: &RunDirectory,
        files: Files,
    ) -> (Vec<OwnedFd>, Config) {
        let kernel = self.add(files.kernel);
        let config = Config {
            initrd: Some(self.add(files.initramfs)),
            cmdline: command_line(plan, files.command_line.as_deref()),
            console_log: Some(self.add(files.console)),
            console_input: Some(self.add(files.keyboard)),
            serial_log: Some(self.add(files.serial)),
            fs: vec![Share {
                tag: SHARE_TAG.into(),
                socket: self.add(files.share),
            }],
            vsock: Some(Vsock {
                cid: GUEST_CID,
                uds: directory.vsock().join(SOCKET),
            }),
            rng: true,
            network: Some(self.add(files.network)),
            disks: self.add_all(files.devices.disks, |disk, add| Disk {
                file: add(disk.file),
                read_only: disk.read_only,
                serial: disk.serial,
            }),
            nets: self.add_all(files.devices.nets, |net, add| Net {
                tap: add(net.tap),
                mac: net.mac,
                mtu: net.mtu,
            }),
            vhost_user: self.add_all(files.devices.vhost_user, |device, add| device.map(add)),
            gdb: files.devices.gdb.map(|socket| self.add(socket)),
            gdb_wait: files.devices.gdb_wait,
            ..Config::new(plan.vm.vcpus, plan.vm.memory_mib, kernel)
        };
        (self.0, config)
    }
}
