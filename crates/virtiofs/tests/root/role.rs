// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The file server as a process in its sandbox, reached over vhost-user.

use std::cell::Cell;
use std::fs;
use std::io::Read;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtiofs::daemon::{self, DaemonConfig, DaemonError};
use coracle_virtiofs::filesystem::{Entry, FileSystem, HandleId, Negotiated, NodeId};
use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::fuse::{Name, Opcode};
use coracle_virtiofs::role::{DIRECTORY_FD, LISTENER_FD, RoleConfig};
use coracle_virtiofs::sandbox::CAPABILITIES;
use coracle_virtiofs::server::{Server, ServerConfig};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tempfile::TempDir;
use vhost::vhost_user::message::VhostUserProtocolFeatures;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use zerocopy::IntoBytes;

use crate::Test;
use crate::guest::{Guest, Link, MEMORY, QUEUE_SIZE, ROOT, TABLE, c, directory, mode, size};

pub const TESTS: &[Test] = &[
    (
        "every_operation_passes_the_filter",
        every_operation_passes_the_filter,
    ),
    (
        "the_process_sees_the_share_and_nothing_else",
        the_process_sees_the_share_and_nothing_else,
    ),
    (
        "a_mount_that_the_host_makes_later_appears",
        a_mount_that_the_host_makes_later_appears,
    ),
    (
        "what_images_hold_is_made_in_the_sandbox",
        what_images_hold_is_made_in_the_sandbox,
    ),
    (
        "the_process_has_a_file_servers_rights",
        the_process_has_a_file_servers_rights,
    ),
    (
        "the_process_ends_when_the_machine_hangs_up",
        the_process_ends_when_the_machine_hangs_up,
    ),
    (
        "the_process_ends_when_nobody_connects",
        the_process_ends_when_nobody_connects,
    ),
    (
        "a_broken_ring_ends_the_process_with_the_cause",
        a_broken_ring_ends_the_process_with_the_cause,
    ),
    (
        "a_broken_chain_ends_the_process_with_the_cause",
        a_broken_chain_ends_the_process_with_the_cause,
    ),
    ("a_stale_kick_is_harmless", a_stale_kick_is_harmless),
    (
        "a_kick_that_cannot_be_read_ends_the_process_with_the_cause",
        a_kick_that_cannot_be_read_ends_the_process_with_the_cause,
    ),
    (
        "a_queue_thread_that_panics_ends_the_service",
        a_queue_thread_that_panics_ends_the_service,
    ),
    (
        "a_system_call_outside_the_filter_ends_the_process",
        a_system_call_outside_the_filter_ends_the_process,
    ),
    (
        "a_process_taken_over_opens_no_device",
        a_process_taken_over_opens_no_device,
    ),
];

/// The argument by which this program is started as a file server.
pub const ARGUMENT: &str = "--file-server";
/// The argument behind it by which it shuts itself in, around the directory that the last one names, and then
/// does what it must not: what the argument in between says.
const MISBEHAVE: &str = "--misbehave";
const SOCKET: &str = "socket";
const DEVICE: &str = "device";

const DEADLINE: Duration = Duration::from_secs(20);
/// Queue 0 is for requests that need no answer.
const QUEUE: usize = 1;
const AVAILABLE: u64 = MEMORY - 0x2000;
const USED: u64 = MEMORY - 0x1000;

/// What the process does: `main` of a file server.
pub fn serve() -> ! {
    let arguments: Vec<_> = std::env::args().skip(2).collect();
    if let [first, what, directory] = &arguments[..]
        && first == MISBEHAVE
    {
        misbehave(what, directory);
    }
    let daemon = DaemonConfig {
        connect_timeout: Duration::from_secs(2),
        ..DaemonConfig::default()
    };
    let config = RoleConfig {
        daemon,
        ..RoleConfig::default()
    };
    match coracle_virtiofs::role::main(None, config) {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            let mut text = error.to_string();
            let mut source = std::error::Error::source(&error);
            while let Some(cause) = source {
                text = format!("{text}: {cause}");
                source = cause.source();
            }
            eprintln!("{text}");
            std::process::exit(1)
        }
    }
}

/// Does what a guest could do that has taken the file server over.
fn misbehave(what: &str, directory: &str) -> ! {
    let inside = coracle_virtiofs::sandbox::enter(fs::File::open(directory).unwrap().into(), None);
    assert!(inside.is_ok(), "{inside:?}");
    match what {
        // Not an error, but the end: only a file server's calls are allowed.
        SOCKET => drop(rustix::net::socket(
            rustix::net::AddressFamily::INET,
            rustix::net::SocketType::STREAM,
            None,
        )),
        // A node of the null device, first in the share and then in a mount below it.
        DEVICE => eprintln!("{:?}", ["/null", "/mount/null"].map(open_new_device)),
        _ => unreachable!(),
    }
    std::process::exit(0)
}

/// Makes a node of the null device and opens it; says what the opening failed with.
fn open_new_device(path: &str) -> Option<i32> {
    use rustix::fs::{CWD, FileType, Mode, OFlags, makedev, mknodat, openat};
    mknodat(
        CWD,
        path,
        FileType::CharacterDevice,
        Mode::RUSR,
        makedev(1, 3),
    )
    .unwrap();
    openat(CWD, path, OFlags::RDONLY, Mode::empty())
        .err()
        .map(Errno::raw_os_error)
}

/// A file server's process and the path of its socket.
struct Process {
    child: Child,
    directory: TempDir,
}

impl Process {
    fn start() -> Self {
        Self::start_in(directory())
    }

    fn start_in(directory: TempDir) -> Self {
        Self::start_with(directory, &[])
    }

    /// Starts the process with `more` descriptors than it is told of, under the numbers beside them.
    fn start_with(directory: TempDir, more: &[(RawFd, RawFd)]) -> Self {
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        let share: OwnedFd = fs::File::open(directory.path().join("share"))
            .unwrap()
            .into();
        let told = [
            (listener.as_raw_fd(), LISTENER_FD),
            (share.as_raw_fd(), DIRECTORY_FD),
        ];
        let child = spawn(&[ARGUMENT], &[&told, more].concat());
        Self { child, directory }
    }

    fn connect(&self) -> (Machine, GuestMemory) {
        Machine::connect(&self.directory.path().join("socket"))
    }

    fn proc(&self, name: &str) -> String {
        fs::read_to_string(format!("/proc/{}/{name}", self.child.id())).unwrap()
    }

    /// The end of the process and what it said.
    fn end(mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        let mut text = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut text)
            .unwrap();
        (status, text)
    }
}

fn spawn(arguments: &[&str], descriptors: &[(RawFd, RawFd)]) -> Child {
    let descriptors = descriptors.to_vec();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(arguments)
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    // SAFETY: between fork and exec there are only system calls.
    unsafe {
        command.pre_exec(move || {
            // First out of the way of each other.
            let high: Vec<_> = descriptors
                .iter()
                .map(|(from, _)| libc::fcntl(*from, libc::F_DUPFD_CLOEXEC, 100))
                .collect();
            for (from, (_, to)) in high.iter().zip(&descriptors) {
                if libc::dup2(*from, *to) < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        });
    }
    command.spawn().unwrap()
}

fn wait(child: &mut Child) -> ExitStatus {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if start.elapsed() > DEADLINE {
            child.kill().unwrap();
            panic!("the file server has not ended within {DEADLINE:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A virtual machine's side of the connection, with one queue.
struct Machine {
    frontend: Frontend,
    kick: EventFd,
    call: EventFd,
    available: Cell<u16>,
}

impl Machine {
    fn connect(socket: &Path) -> (Self, GuestMemory) {
        Self::connect_kicking(socket, EventFd::new(EFD_NONBLOCK).unwrap())
    }

    fn connect_kicking(socket: &Path, kick: EventFd) -> (Self, GuestMemory) {
        let memory = GuestMemory::shared(&[(GuestAddress(0), MEMORY)]).unwrap();
        let mut frontend = Frontend::from_stream(UnixStream::connect(socket).unwrap(), 2);
        frontend.set_owner().unwrap();
        let features = frontend.get_features().unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend
            .set_protocol_features(protocol & VhostUserProtocolFeatures::REPLY_ACK)
            .unwrap();
        // Without EVENT_IDX every answer is called.
        frontend.set_features(features & !(1 << 29)).unwrap();
        let region = &memory.regions()[0];
        let (file, mmap_offset) = region.file().unwrap();
        let host = region.host_address() as u64;
        frontend
            .set_mem_table(&[VhostUserMemoryRegionInfo {
                guest_phys_addr: 0,
                memory_size: MEMORY,
                userspace_addr: host,
                mmap_offset,
                mmap_handle: file.as_raw_fd(),
            }])
            .unwrap();
        let ring = VringConfigData {
            queue_max_size: QUEUE_SIZE,
            queue_size: QUEUE_SIZE,
            flags: 0,
            desc_table_addr: host + TABLE,
            used_ring_addr: host + USED,
            avail_ring_addr: host + AVAILABLE,
            log_addr: None,
        };
        let call = EventFd::new(EFD_NONBLOCK).unwrap();
        frontend.set_vring_num(QUEUE, QUEUE_SIZE).unwrap();
        frontend.set_vring_addr(QUEUE, &ring).unwrap();
        frontend.set_vring_base(QUEUE, 0).unwrap();
        frontend.set_vring_call(QUEUE, &call).unwrap();
        frontend.set_vring_kick(QUEUE, &kick).unwrap();
        frontend.set_vring_enable(QUEUE, true).unwrap();
        (
            Self {
                frontend,
                kick,
                call,
                available: Cell::new(0),
            },
            memory,
        )
    }

    fn publish(&self, memory: &GuestMemory, index: u16) {
        memory
            .store_u16(GuestAddress(AVAILABLE + 2), index, Ordering::Release)
            .unwrap();
        self.kick.write(1).unwrap();
    }
}

impl Link for Machine {
    fn exchange(&self, memory: &GuestMemory) -> u32 {
        let at = self.available.get();
        let slot = u64::from(at % QUEUE_SIZE);
        memory
            .write_obj(GuestAddress(AVAILABLE + 4 + 2 * slot), &0_u16)
            .unwrap();
        self.available.set(at.wrapping_add(1));
        self.publish(memory, self.available.get());

        let timeout = Timespec::try_from(DEADLINE).unwrap();
        // SAFETY: the descriptor is open for as long as `self` is.
        let call = unsafe { rustix::fd::BorrowedFd::borrow_raw(self.call.as_raw_fd()) };
        let ready = poll(
            &mut [PollFd::from_borrowed_fd(call, PollFlags::IN)],
            Some(&timeout),
        )
        .unwrap();
        assert_eq!(ready, 1, "no answer within {DEADLINE:?}");
        self.call.read().unwrap();
        let used = memory
            .load_u16(GuestAddress(USED + 2), Ordering::Acquire)
            .unwrap();
        assert_eq!(used, self.available.get());
        memory
            .read_obj(GuestAddress(USED + 4 + 8 * slot + 4))
            .unwrap()
    }
}

/// A guest whose server is a process of its own.
fn guest(process: Process) -> Guest {
    let (machine, memory) = process.connect();
    let Process { directory, .. } = process;
    Guest::linked(Box::new(machine), memory, directory)
}

fn every_operation_passes_the_filter() {
    let guest = guest(Process::start());
    let handle = |fh: u64| ReleaseIn {
        fh,
        ..ReleaseIn::default()
    };
    let guest = guest.asking_as(1000, 1000);

    let made = guest.mkdir(ROOT, "directory", 0o755).unwrap();
    guest.mknod(ROOT, "fifo", libc::S_IFIFO | 0o600, 0).unwrap();
    let link = guest.symlink(ROOT, "link", "target").unwrap();
    assert_eq!(
        guest.call(Opcode::ReadLink, link.nodeid, &[]).unwrap(),
        b"target"
    );
    let (file, opened) = guest.create(ROOT, "file", 0o644, libc::O_RDWR).unwrap();
    let (node, fh) = (file.nodeid, opened.fh);
    assert_eq!((file.attr.uid, made.attr.gid), (1000, 1000));
    let kill = WriteIn {
        fh,
        write_flags: 4,
        ..WriteIn::default()
    };
    assert_eq!(guest.write_with(node, kill, b"content"), Ok(7));
    let append = WriteIn {
        fh,
        flags: libc::O_APPEND.cast_unsigned(),
        ..WriteIn::default()
    };
    assert_eq!(guest.write_with(node, append, b"!"), Ok(1));
    assert_eq!(guest.read(node, fh, 0, 100).unwrap(), b"content!");
    guest.set_attributes(node, size(4)).unwrap();
    guest.set_attributes(node, mode(0o600)).unwrap();
    let rest = SetAttrIn {
        valid: 0b11_0110,
        uid: 1,
        gid: 1,
        ..SetAttrIn::default()
    };
    assert_eq!(guest.set_attributes(node, rest).unwrap().uid, 1);
    guest.setxattr(node, "user.name", b"value").unwrap();
    assert_eq!(guest.getxattr(node, "user.name", 10).unwrap(), b"value");
    guest.listxattr(node, 0).unwrap();
    guest
        .tell(Opcode::RemoveXattr, node, &[&c("user.name")])
        .unwrap();
    guest.link(node, ROOT, "second").unwrap();
    guest
        .rename(ROOT, "second", made.nodeid, "third", 0)
        .unwrap();
    let fsync = |fsync_flags| FsyncIn {
        fh,
        fsync_flags,
        padding: 0,
    };
    guest
        .tell(Opcode::Fsync, node, &[fsync(0).as_bytes()])
        .unwrap();
    guest
        .tell(Opcode::Fsync, node, &[fsync(1).as_bytes()])
        .unwrap();
    guest
        .tell(
            Opcode::Flush,
            node,
            &[FlushIn {
                fh,
                ..FlushIn::default()
            }
            .as_bytes()],
        )
        .unwrap();
    let room = FallocateIn {
        fh,
        length: 100,
        ..FallocateIn::default()
    };
    guest
        .tell(Opcode::Fallocate, node, &[room.as_bytes()])
        .unwrap();
    let hole = LseekIn {
        fh,
        whence: libc::SEEK_HOLE.cast_unsigned(),
        ..LseekIn::default()
    };
    guest.call(Opcode::Lseek, node, &[hole.as_bytes()]).unwrap();
    let copy = CopyFileRangeIn {
        fh_in: fh,
        nodeid_out: node,
        fh_out: fh,
        off_out: 50,
        len: 4,
        ..Default::default()
    };
    guest
        .call(Opcode::CopyFileRange, node, &[copy.as_bytes()])
        .unwrap();
    let unnamed = CreateIn {
        flags: libc::O_RDWR.cast_unsigned(),
        ..CreateIn::default()
    };
    guest
        .call(Opcode::TmpFile, ROOT, &[unnamed.as_bytes(), &c("x")])
        .unwrap();
    guest.call(Opcode::StatFs, ROOT, &[]).unwrap();
    guest.tell(Opcode::SyncFs, ROOT, &[&[0; 8]]).unwrap();
    let listing = guest.opendir(ROOT).unwrap();
    assert_eq!(
        guest.readdir(ROOT, listing, 0, 4096, true).unwrap().len(),
        6
    );
    guest
        .tell(Opcode::ReleaseDir, ROOT, &[handle(listing).as_bytes()])
        .unwrap();
    guest.release(node, fh).unwrap();
    guest.unlink(made.nodeid, "third").unwrap();
    guest.tell(Opcode::Rmdir, ROOT, &[&c("directory")]).unwrap();
    guest.forget(node, 2);
    guest.tell(Opcode::Destroy, 0, &[]).unwrap();
}

fn the_process_sees_the_share_and_nothing_else() {
    let directory = directory();
    let secret = fs::File::open(directory.path().join("secret")).unwrap();
    let forgotten = [(secret.as_raw_fd(), 5), (secret.as_raw_fd(), 77)];
    let process = Process::start_with(directory, &forgotten);
    let (machine, memory) = process.connect();
    let outside = ["mnt", "net", "ipc", "uts", "cgroup"].map(|name| {
        let of = |who: &str| fs::read_link(format!("/proc/{who}/ns/{name}")).unwrap();
        (name, of("self") == of(&process.child.id().to_string()))
    });

    let mounts = process.proc("mountinfo");
    let root = fs::read_dir(format!("/proc/{}/root", process.child.id()))
        .unwrap()
        .count();

    assert_eq!(
        outside,
        ["mnt", "net", "ipc", "uts", "cgroup"].map(|name| (name, false))
    );
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert_eq!(root, 0);
    for fd in fs::read_dir(format!("/proc/{}/fd", process.child.id())).unwrap() {
        let fd = fd.unwrap();
        if ["0", "1", "2"].contains(&fd.file_name().to_str().unwrap()) {
            // Where its standard streams lead is the caller's choice.
            continue;
        }
        // It may close a descriptor meanwhile.
        let Ok(path) = fs::read_link(fd.path()) else {
            continue;
        };
        let harmless =
            path == Path::new("/") || !path.is_absolute() || path == Path::new("/dev/null");
        let memory = path
            .to_str()
            .is_some_and(|path| path.starts_with("/memfd:"));
        // The detached mount of /proc/self/fd, above which there is nothing.
        let fds = path.ends_with("fd");
        let kernel = path
            .to_str()
            .is_some_and(|path| path.starts_with("anon_inode:") || path.contains("pipe:"));
        assert!(harmless || memory || fds || kernel, "{}", path.display());
    }
    drop((machine, memory));
}

fn a_mount_that_the_host_makes_later_appears() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    crate::mounts::private_mounts();
    let directory = directory();
    let share = directory.path().join("share");
    mount("tmpfs", &share, "tmpfs", MountFlags::empty(), None).unwrap();
    mount_change(&share, MountPropagationFlags::SHARED).unwrap();
    fs::create_dir(share.join("late")).unwrap();
    let guest = guest(Process::start_in(directory));
    assert_eq!(guest.lookup(ROOT, "late").unwrap().attr.flags, 0);

    mount(
        "tmpfs",
        share.join("late"),
        "tmpfs",
        MountFlags::empty(),
        None,
    )
    .unwrap();
    fs::write(share.join("late/file"), "").unwrap();

    let late = guest.lookup(ROOT, "late").unwrap();
    assert_eq!(
        late.attr.flags,
        coracle_virtiofs::fuse::flags::attr::SUBMOUNT
    );
    assert!(guest.lookup(late.nodeid, "file").is_ok());
}

/// Its mounts take neither devices nor set-user-id nor programs, which means the process alone.
fn what_images_hold_is_made_in_the_sandbox() {
    const FILE_CAPABILITIES: &[u8] =
        b"\x00\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let guest = guest(Process::start());

    let null = guest
        .mknod(ROOT, "null", libc::S_IFCHR | 0o666, 0x103)
        .unwrap();
    let (program, _) = guest.create(ROOT, "program", 0o755, libc::O_RDWR).unwrap();
    guest.set_attributes(program.nodeid, mode(0o6755)).unwrap();
    guest
        .setxattr(program.nodeid, "security.capability", FILE_CAPABILITIES)
        .unwrap();

    assert_eq!(null.attr.rdev, 0x103);
    let bits = guest.attributes(program.nodeid).unwrap().mode & 0o7777;
    assert_eq!(bits, 0o6755);
    assert_eq!(
        guest.getxattr(program.nodeid, "security.capability", 100),
        Ok(FILE_CAPABILITIES.to_vec())
    );
}

fn the_process_has_a_file_servers_rights() {
    let process = Process::start();
    let _machine = process.connect();

    for task in fs::read_dir(format!("/proc/{}/task", process.child.id())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let line = status
                .lines()
                .find(|line| line.starts_with(name))
                .unwrap_or_default();
            line.split_whitespace()
                .nth(1)
                .unwrap_or_default()
                .to_owned()
        };
        let capabilities = format!("{:016x}", CAPABILITIES.bits());
        for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
            assert_eq!(field(set), capabilities, "{set}");
        }
        for set in ["CapInh:", "CapAmb:"] {
            assert_eq!(field(set), "0000000000000000", "{set}");
        }
        assert_eq!(
            (field("NoNewPrivs:").as_str(), field("Seccomp:").as_str()),
            ("1", "2")
        );
        assert_eq!(field("Groups:"), "");
    }
    let limits = process.proc("limits");
    assert!(
        limits
            .lines()
            .any(|line| line.starts_with("Max core file size") && line.contains(" 0 "))
    );
}

fn the_process_ends_when_the_machine_hangs_up() {
    let process = Process::start();
    let (machine, _memory) = process.connect();

    drop(machine);

    let (status, text) = process.end();
    assert!(status.success(), "{text}");
    assert_eq!(text, "");
}

fn the_process_ends_when_nobody_connects() {
    let (status, text) = Process::start().end();

    assert_eq!(status.code(), Some(1));
    assert_eq!(
        text,
        "no virtual machine has connected to the file server within 2 s\n"
    );
}

fn a_broken_ring_ends_the_process_with_the_cause() {
    let process = Process::start();
    let (machine, memory) = process.connect();

    // More requests than the ring holds.
    machine.publish(&memory, QUEUE_SIZE + 1);

    let (status, text) = process.end();
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("has broken the file server's queue 1: its rings do not hold together"),
        "{text}"
    );
    drop(machine.frontend);
}

fn a_broken_chain_ends_the_process_with_the_cause() {
    let process = Process::start();
    let (machine, memory) = process.connect();

    // The first descriptor is a buffer of 0 bytes.
    machine.publish(&memory, 1);

    let (status, text) = process.end();
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("its descriptor chain 0 is broken: descriptor 0"),
        "{text}"
    );
    drop(machine.frontend);
}

/// The virtual machine stops a queue and hands over another descriptor while the queue's thread has been
/// woken by the old one already. Here the old one is left registered, so that it is so every time.
fn a_stale_kick_is_harmless() {
    let process = Process::start();
    let (machine, memory) = process.connect();
    let unused = EventFd::new(EFD_NONBLOCK).unwrap();
    machine.frontend.set_vring_kick(QUEUE, &unused).unwrap();
    let Process { directory, .. } = process;

    let guest = Guest::linked(Box::new(machine), memory, directory);

    // The thread that has answered INIT is still there.
    assert_eq!(guest.lookup(ROOT, "nothing").unwrap_err(), libc::ENOENT);
    assert_eq!(guest.lookup(ROOT, "nothing").unwrap_err(), libc::ENOENT);
}

fn a_kick_that_cannot_be_read_ends_the_process_with_the_cause() {
    let process = Process::start();
    // Wakes whoever waits for it, being broken.
    let (_, writer) = std::io::pipe().unwrap();
    // SAFETY: nobody else owns the descriptor.
    let kick = unsafe { EventFd::from_raw_fd(writer.into_raw_fd()) };

    let (machine, _memory) =
        Machine::connect_kicking(&process.directory.path().join("socket"), kick);

    let (status, text) = process.end();
    assert_eq!(status.code(), Some(1));
    assert!(
        text.contains("the kicks of the file server's queue 1 cannot be read: Bad file"),
        "{text}"
    );
    drop(machine.frontend);
}

fn a_queue_thread_that_panics_ends_the_service() {
    struct Faulty;
    impl FileSystem for Faulty {
        fn init(&self, _: Negotiated) {
            panic!("on purpose")
        }

        fn lookup(&self, _: NodeId, _: Name<'_>) -> Result<Entry, Errno> {
            Err(Errno::NOENT)
        }

        fn getattr(&self, _: NodeId, _: Option<HandleId>) -> Result<(Attr, Duration), Errno> {
            Err(Errno::STALE)
        }
    }
    let directory = directory();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let served = std::thread::spawn(move || {
        let server = Server::new(Faulty, ServerConfig::default());
        daemon::serve(listener, server, &DaemonConfig::default())
    });
    let (machine, memory) = Machine::connect(&socket);
    // INIT of protocol 7.38, and room for the answer behind it.
    let init = [56, 26, 1, 0, 1, 0, 0, 0, 0, 0, 7, 38, 0x2_0000, 0_u32];
    memory.write_obj(GuestAddress(0x1000), &init).unwrap();
    let (next, write) = (1 << 32, 2 << 32);
    let table = [0x1000, 56 | next | 1 << 48, 0x2000, 0x1000 | write];
    memory
        .write_obj::<[u64; 4]>(GuestAddress(TABLE), &table)
        .unwrap();

    machine.publish(&memory, 1);

    let start = Instant::now();
    while !served.is_finished() {
        assert!(start.elapsed() < DEADLINE, "it still serves");
        std::thread::sleep(Duration::from_millis(5));
    }
    let error = served.join().unwrap().unwrap_err();
    assert!(
        matches!(error, DaemonError::Panicked { queue: QUEUE }),
        "{error}"
    );
}

fn a_system_call_outside_the_filter_ends_the_process() {
    use std::os::unix::process::ExitStatusExt;
    let mut child = spawn(&[ARGUMENT, MISBEHAVE, SOCKET, "/tmp"], &[]);

    assert_eq!(wait(&mut child).signal(), Some(libc::SIGSYS));
}

fn a_process_taken_over_opens_no_device() {
    use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
    crate::mounts::private_mounts();
    let directory = directory();
    // Mounts that do allow devices, whatever the directory for temporary files does.
    let share = directory.path().join("share");
    mount("tmpfs", &share, "tmpfs", MountFlags::empty(), None).unwrap();
    let below = share.join("mount");
    fs::create_dir(&below).unwrap();
    mount("tmpfs", &below, "tmpfs", MountFlags::empty(), None).unwrap();

    let child = spawn(&[ARGUMENT, MISBEHAVE, DEVICE, share.to_str().unwrap()], &[]);

    let (status, text) = Process { child, directory }.end();
    assert!(status.success(), "{text}");
    assert_eq!(text, format!("{:?}\n", [Some(libc::EACCES); 2]));
    unmount(&share, UnmountFlags::DETACH).unwrap();
}
