// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! What a run needs of the host besides KVM. The judgements are pure over the text of `/proc`.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use rustix::thread::CapabilitySet;

use super::report::Finding;

/// First kernel version with every system call that a run makes (`mount_setattr`).
const OLDEST_KERNEL: (u32, u32) = (5, 12);
/// Memory for one guest of the default size and what runs beside it, in MiB.
const LEAST_MEMORY_MIB: u64 = 320;
/// `OVERLAYFS_SUPER_MAGIC`.
const OVERLAY: rustix::fs::FsWord = 0x794c_7630;
/// Room for a small image, in MiB.
const LEAST_ROOM_MIB: u64 = 256;

/// The text of a file, or nothing where it cannot be read.
pub fn read_text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// Whether this process may make mounts and namespaces.
pub fn privilege() -> Finding {
    const NAME: &str = "privilege";
    let remedy = "run as root, outside of any container that withholds CAP_SYS_ADMIN: a container's file system is \
                  mounted on the host";
    match rustix::thread::capabilities(None) {
        _ if !rustix::process::geteuid().is_root() => Finding::missing(
            NAME,
            format!("runs as user {}", rustix::process::geteuid()),
            remedy,
        ),
        Ok(sets) if sets.effective.contains(CapabilitySet::SYS_ADMIN) => {
            Finding::ok(NAME, "runs as root")
        }
        _ => Finding::missing(NAME, "runs as root without CAP_SYS_ADMIN", remedy),
    }
}

/// Whether the host's kernel is new enough.
pub fn kernel(release: &str) -> Finding {
    const NAME: &str = "host kernel";
    let release = release.trim();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|number| number.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version >= OLDEST_KERNEL {
        Finding::ok(NAME, release)
    } else {
        let (major, minor) = OLDEST_KERNEL;
        Finding::missing(
            NAME,
            format!("'{release}'"),
            format!("use Linux {major}.{minor} or newer"),
        )
    }
}

/// Whether writable layers can be mounted, by the file systems that the kernel has and the modules it could load.
pub fn overlay(filesystems: &str, modules: &str) -> Finding {
    const NAME: &str = "overlay";
    let has = filesystems
        .lines()
        .any(|line| line.split_ascii_whitespace().last() == Some("overlay"));
    let could = modules
        .lines()
        .filter_map(|line| line.split_once(':'))
        .any(|(path, _)| {
            path.rsplit('/')
                .next()
                .is_some_and(|name| name.starts_with("overlay.ko"))
        });
    if has {
        Finding::ok(NAME, "the kernel has the overlay file system")
    } else if could {
        Finding::ok(
            NAME,
            "the kernel loads the overlay file system when it is asked for",
        )
    } else {
        Finding::missing(
            NAME,
            "the kernel has no overlay file system, nor a module of it",
            "use a kernel with CONFIG_OVERLAY_FS",
        )
    }
}

/// Whether a file of the guest is there and begins as it should.
pub fn guest_file(name: &'static str, path: &Path, magic: &[u8]) -> Finding {
    let mut start = vec![0; magic.len()];
    match File::open(path).and_then(|mut file| file.read_exact(&mut start)) {
        Ok(()) if start == magic => Finding::ok(name, path.display().to_string()),
        Ok(()) => Finding::missing(
            name,
            format!(
                "{} begins with {start:02x?}, not with {magic:02x?}",
                path.display()
            ),
            "build it again (make guest), or name another directory with --guest",
        ),
        Err(error) => Finding::missing(
            name,
            format!("{}: {error}", path.display()),
            "build it (make guest), or name the directory that holds it with --guest",
        ),
    }
}

/// Whether unpacked images and writable layers have a place to be.
pub fn store(root: &Path) -> Finding {
    const NAME: &str = "images";
    // Before the first run the directory does not exist: the nearest one above decides.
    let Some(existing) = root.ancestors().find(|ancestor| ancestor.exists()) else {
        return Finding::missing(
            NAME,
            format!("{} cannot be reached", root.display()),
            "name another with --root",
        );
    };
    if rustix::fs::access(existing, rustix::fs::Access::WRITE_OK).is_err() {
        return Finding::missing(
            NAME,
            format!("{} cannot be written to", existing.display()),
            "run as a user who may write there, or name another directory with --root",
        );
    }
    if rustix::fs::statfs(existing).is_ok_and(|info| info.f_type == OVERLAY) {
        return Finding::missing(
            NAME,
            format!(
                "{} is on an overlay, which cannot hold a container's writable layer",
                existing.display()
            ),
            "name a directory on another file system with --root, or mount a tmpfs there",
        );
    }
    match rustix::fs::statvfs(existing) {
        Ok(space) => {
            let mib = space.f_bavail.saturating_mul(space.f_frsize) >> 20;
            let found = format!("{} has {mib} MiB free", root.display());
            if mib >= LEAST_ROOM_MIB {
                Finding::ok(NAME, found)
            } else {
                Finding::missing(
                    NAME,
                    found,
                    format!("make room: {LEAST_ROOM_MIB} MiB at least"),
                )
            }
        }
        Err(error) => Finding::missing(
            NAME,
            format!(
                "{} does not tell its free space: {error}",
                existing.display()
            ),
            "name another directory with --root",
        ),
    }
}

/// Whether a guest of the default size fits.
pub fn memory(meminfo: &str) -> Finding {
    const NAME: &str = "memory";
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().trim_end_matches(" kB").parse::<u64>().ok());
    match available {
        Some(kib) if kib >> 10 >= LEAST_MEMORY_MIB => {
            Finding::ok(NAME, format!("{} MiB available", kib >> 10))
        }
        Some(kib) => Finding::missing(
            NAME,
            format!("{} MiB available", kib >> 10),
            format!("free some: one guest of the default size needs {LEAST_MEMORY_MIB} MiB"),
        ),
        None => Finding::advice(NAME, "not known", "mount /proc"),
    }
}

/// Whether guest memory can get huge pages, which make a guest start faster.
pub fn huge_pages(shmem_enabled: &str) -> Finding {
    const NAME: &str = "huge pages";
    let chosen = shmem_enabled
        .split_once('[')
        .and_then(|(_, rest)| rest.split_once(']'))
        .map(|(word, _)| word);
    match chosen {
        Some(word @ ("always" | "advise" | "within_size" | "force")) => {
            Finding::ok(NAME, format!("shared memory may have them ({word})"))
        }
        chosen => Finding::advice(
            NAME,
            format!(
                "shared memory gets none ({})",
                chosen.unwrap_or("not known")
            ),
            "for faster starts: echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
    }
}

/// The version of control groups.
pub fn cgroups(root: &Path) -> Finding {
    const NAME: &str = "cgroups";
    if root.join("cgroup.controllers").exists() {
        Finding::ok(NAME, "version 2")
    } else if root.join("unified/cgroup.controllers").exists() {
        Finding::ok(NAME, "version 1, with version 2 beside it")
    } else if root.join("memory").exists() {
        Finding::ok(NAME, "version 1")
    } else {
        Finding::advice(
            NAME,
            "none are mounted",
            format!(
                "to limit what a virtual machine takes: mount -t cgroup2 cgroup2 {}",
                root.display()
            ),
        )
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::report::Status;
    use super::*;

    #[rstest]
    #[case("6.1.0-25-cloud-amd64\n", Status::Ok)]
    #[case("5.12.0", Status::Ok)]
    #[case("5.11.22", Status::Missing)]
    #[case("4.19", Status::Missing)]
    #[case("", Status::Missing)]
    #[case("99999999999.1", Status::Missing)]
    fn kernel_is_compared_by_version(#[case] release: &str, #[case] status: Status) {
        assert_eq!(kernel(release).status, status);
    }

    #[rstest]
    #[case::has("nodev\tsysfs\n\text4\nnodev\toverlay\n", "", Status::Ok)]
    #[case::could(
        "nodev\tsysfs\n",
        "kernel/fs/overlayfs/overlay.ko.xz: kernel/fs/x.ko\n",
        Status::Ok
    )]
    #[case::neither("nodev\tsysfs\n", "kernel/fs/fuse/fuse.ko:\n", Status::Missing)]
    #[case::another("nodev\toverlayfs2\n", "kernel/myoverlay.ko:\n", Status::Missing)]
    fn overlay_is_a_name_of_its_own(
        #[case] filesystems: &str,
        #[case] modules: &str,
        #[case] status: Status,
    ) {
        assert_eq!(overlay(filesystems, modules).status, status);
    }

    #[rstest]
    #[case("MemTotal: 1 kB\nMemAvailable:    2097152 kB\n", Status::Ok)]
    #[case("MemAvailable:    1024 kB\n", Status::Missing)]
    #[case("", Status::Advice)]
    fn memory_is_what_is_available(#[case] meminfo: &str, #[case] status: Status) {
        assert_eq!(memory(meminfo).status, status);
    }

    #[rstest]
    #[case("always within_size [advise] never deny force\n", Status::Ok)]
    #[case("always within_size advise [never] deny force\n", Status::Advice)]
    #[case("", Status::Advice)]
    fn huge_pages_are_told_by_the_bracket(#[case] text: &str, #[case] status: Status) {
        assert_eq!(huge_pages(text).status, status);
    }

    #[rstest]
    #[case::right(b"\x7fELFrest".as_slice(), Status::Ok)]
    #[case::other(b"MZ\0\0rest".as_slice(), Status::Missing)]
    #[case::short(b"\x7f".as_slice(), Status::Missing)]
    fn guest_file_is_told_by_its_start(#[case] content: &[u8], #[case] status: Status) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("vmlinux");
        fs::write(&path, content).unwrap();

        assert_eq!(guest_file("guest kernel", &path, b"\x7fELF").status, status);
    }

    #[test]
    fn store_that_does_not_exist_yet_is_judged_by_the_directory_above() {
        let directory = tempfile::tempdir().unwrap();

        let finding = store(&directory.path().join("not/yet"));

        assert!(finding.found.contains("MiB free"), "{}", finding.found);
    }
}
