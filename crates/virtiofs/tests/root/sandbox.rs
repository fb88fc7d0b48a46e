// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What the process in its sandbox can do, and what it cannot.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;

use coracle_virtiofs::fuse::Opcode;
use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::sandbox::CAPABILITIES;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use zerocopy::IntoBytes;

use crate::guest::{ROOT, c, directory, mode, size};
use crate::process::{ARGUMENT, DEVICE, MISBEHAVE, Process, SOCKET, spawn, wait};

tests![
    every_operation_passes_the_filter,
    the_process_sees_the_share_and_nothing_else,
    the_process_enters_the_network_that_it_was_given,
    a_mount_that_the_host_makes_later_appears,
    what_images_hold_is_made_in_the_sandbox,
    the_process_has_a_file_servers_rights,
    a_system_call_outside_the_filter_ends_the_process,
    a_process_taken_over_opens_no_device,
];

fn every_operation_passes_the_filter() {
    let guest = Process::start().into_guest();
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

fn the_process_enters_the_network_that_it_was_given() {
    // Namespaces belong to threads.
    let made = std::thread::spawn(|| {
        // SAFETY: the flag does not unshare the table of descriptors.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.unwrap();
        fs::File::open("/proc/thread-self/ns/net").unwrap()
    });
    let network = made.join().unwrap();
    let given = fs::read_link(format!("/proc/self/fd/{}", network.as_raw_fd())).unwrap();
    let process = Process::start_in_network(&network);
    // Once it serves, it has entered all that it enters.
    let _guest = process.connect();

    let found = fs::read_link(format!("/proc/{}/ns/net", process.child.id())).unwrap();

    assert_eq!(found, given);
    assert_ne!(found, fs::read_link("/proc/thread-self/ns/net").unwrap());
}

fn a_mount_that_the_host_makes_later_appears() {
    use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
    crate::mounts::private_mounts();
    let directory = directory();
    let share = directory.path().join("share");
    mount("tmpfs", &share, "tmpfs", MountFlags::empty(), None).unwrap();
    mount_change(&share, MountPropagationFlags::SHARED).unwrap();
    fs::create_dir(share.join("late")).unwrap();
    let guest = Process::start_in(directory).into_guest();
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
    let guest = Process::start().into_guest();

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
