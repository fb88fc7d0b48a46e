// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Ways out of the shared directory that lead nowhere.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::sync::atomic::{AtomicBool, Ordering};

use coracle_virtiofs::fuse::Opcode;
use rstest::rstest;

use crate::guest::{Guest, ROOT, mode, size};

#[rstest]
#[case::up("..")]
#[case::absolute("/")]
#[case::through_proc("/proc/self/root")]
fn nothing_is_found_behind_a_planted_link(#[case] target: &str) {
    let guest = Guest::prepared(Default::default(), |share| {
        symlink(target, share.join("link")).unwrap()
    });
    let link = guest.lookup(ROOT, "link").unwrap();

    assert_eq!(link.attr.mode & libc::S_IFMT, libc::S_IFLNK);
    assert_eq!(
        guest.lookup(link.nodeid, "secret").unwrap_err(),
        libc::ENOTDIR
    );
    assert_eq!(
        guest.mkdir(link.nodeid, "new", 0o755).unwrap_err(),
        libc::ENOTDIR
    );
    assert_eq!(guest.opendir(link.nodeid), Err(libc::ENOTDIR));
}

#[test]
fn a_link_to_a_file_of_the_host_gives_nothing_of_the_file() {
    let guest = Guest::prepared(Default::default(), |share| {
        symlink("../secret", share.join("link")).unwrap()
    });
    let link = guest.node("link");

    assert_eq!(guest.open(link, libc::O_RDWR), Err(libc::ELOOP));
    assert_eq!(
        guest.open(link, libc::O_RDONLY | libc::O_NOFOLLOW),
        Err(libc::ELOOP)
    );
    assert_eq!(guest.set_attributes(link, size(0)), Err(libc::ELOOP));
    assert_eq!(
        guest.set_attributes(link, mode(0o777)),
        Err(libc::EOPNOTSUPP)
    );
    assert_eq!(guest.getxattr(link, "user.name", 10), Err(libc::ENODATA));
    assert_eq!(
        guest.setxattr(link, "user.name", b"value"),
        Err(libc::EPERM)
    );
    let secret = fs::metadata(guest.secret()).unwrap();
    assert_eq!((secret.len(), secret.mode() & 0o777), (11, 0o666));
}

#[test]
fn creating_over_a_link_does_not_write_through_it() {
    let guest = Guest::prepared(Default::default(), |share| {
        symlink("../secret", share.join("link")).unwrap()
    });

    let created = guest.create(ROOT, "link", 0o600, libc::O_WRONLY | libc::O_TRUNC);

    assert_eq!(created.unwrap_err(), libc::ELOOP);
    assert_eq!(fs::read(guest.secret()).unwrap(), b"of the host");
}

#[test]
fn a_directory_exchanged_for_a_link_while_it_is_used_never_leads_outside() {
    let guest = Guest::prepared(Default::default(), |share| {
        fs::create_dir(share.join("directory")).unwrap();
        symlink("..", share.join("link")).unwrap();
    });
    let (share, done) = (guest.share(), AtomicBool::new(false));
    let (mut links, mut rounds) = (0, 0);

    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let _ = rustix::fs::renameat_with(
                    rustix::fs::CWD,
                    share.join("directory"),
                    rustix::fs::CWD,
                    share.join("link"),
                    rustix::fs::RenameFlags::EXCHANGE,
                );
            }
        });
        // On a busy machine until the other thread has had its turn.
        while rounds < 5_000 || (links == 0 && rounds < 1_000_000) {
            rounds += 1;
            let found = guest.lookup(ROOT, "directory").unwrap();
            links += u32::from(found.attr.mode & libc::S_IFMT == libc::S_IFLNK);
            assert!(guest.lookup(found.nodeid, "secret").is_err());
            assert!(
                guest
                    .create(found.nodeid, "secret", 0o600, libc::O_RDWR)
                    .is_err()
                    || {
                        // Made in the directory, then; take it away again.
                        guest.unlink(found.nodeid, "secret").is_ok()
                    }
            );
            guest.forget(found.nodeid, 1);
        }
        done.store(true, Ordering::Relaxed);
    });

    assert_eq!(fs::read(guest.secret()).unwrap(), b"of the host");
    assert!(links > 0, "the race was never run");
}

#[test]
fn a_directory_moved_out_of_the_share_does_not_take_the_guest_along() {
    let guest = Guest::prepared(Default::default(), |share| {
        fs::create_dir(share.join("directory")).unwrap()
    });
    let directory = guest.node("directory");
    fs::rename(
        guest.share().join("directory"),
        guest.secret().with_file_name("moved"),
    )
    .unwrap();

    assert_eq!(guest.lookup(directory, "..").unwrap_err(), libc::EINVAL);
    assert_eq!(
        guest.rename(directory, "..", ROOT, "up", 0),
        Err(libc::EINVAL)
    );
}

#[rstest]
#[case::fifo(libc::S_IFIFO)]
#[case::socket(libc::S_IFSOCK)]
fn what_is_no_file_is_never_opened(#[case] kind: u32) {
    let guest = Guest::new();
    let node = guest
        .mknod(ROOT, "special", kind | 0o666, 0)
        .unwrap()
        .nodeid;

    // Opening a FIFO would block for ever.
    assert_eq!(guest.open(node, libc::O_RDONLY), Err(libc::ENXIO));
    assert_eq!(
        guest.open(node, libc::O_WRONLY | libc::O_TRUNC),
        Err(libc::ENXIO)
    );
    assert_eq!(
        guest
            .create(ROOT, "special", 0o600, libc::O_WRONLY)
            .unwrap_err(),
        libc::ENXIO
    );
    assert_eq!(guest.opendir(node), Err(libc::ENOTDIR));
    assert_eq!(guest.set_attributes(node, size(0)), Err(libc::ENXIO));
    assert_eq!(guest.getxattr(node, "user.name", 10), Err(libc::ENODATA));
    assert_eq!(guest.listxattr(node, 10).unwrap(), b"");
    assert_eq!(
        guest.tell(Opcode::SyncFs, node, &[&[0; 8]]),
        Err(libc::ENOTDIR)
    );
}

#[test]
fn a_special_file_has_attributes_like_any_other() {
    let guest = Guest::new();
    let node = guest
        .mknod(ROOT, "special", libc::S_IFIFO | 0o600, 0)
        .unwrap()
        .nodeid;

    assert_eq!(
        guest.set_attributes(node, mode(0o640)).unwrap().mode,
        libc::S_IFIFO | 0o640
    );
    assert_eq!(guest.link(node, ROOT, "link").unwrap().nodeid, node);
}

#[rstest]
#[case::directory(libc::S_IFDIR)]
#[case::link(libc::S_IFLNK)]
#[case::nothing(0)]
#[case::all_bits(0o17_0000)]
fn mknod_makes_only_what_it_is_for(#[case] kind: u32) {
    let guest = Guest::new();

    let answer = guest.mknod(ROOT, "new", kind | 0o600, 0);

    assert_eq!(answer.unwrap_err(), libc::EINVAL);
    assert!(!guest.share().join("new").exists());
}
