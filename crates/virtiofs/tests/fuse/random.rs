// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Requests made of random pieces: nothing panics, nothing outside the share changes, and nothing of it is
//! read.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};

use coracle_virtiofs::fuse::Opcode;
use coracle_virtiofs::passthrough::FsConfig;
use proptest::prelude::*;

use crate::guest::{Guest, c};

#[derive(Clone, Debug)]
struct Request {
    opcode: u32,
    node: u64,
    body: Vec<u8>,
    room: u32,
}

/// Names that occur, names that do not, and names that are none.
fn name() -> impl Strategy<Value = Vec<u8>> {
    const NAMES: &[&str] = &[
        "file",
        "directory",
        "out",
        "secret",
        "fifo",
        "new",
        "..",
        ".",
        "",
        "/",
        "../secret",
    ];
    prop::sample::select(NAMES).prop_map(c)
}

/// Numbers as they stand in requests: mostly small, so that nodes and handles are hit, and mode bits.
fn numbers() -> impl Strategy<Value = Vec<u8>> {
    let small = (0_u64..8).boxed();
    let flags = any::<u32>()
        .prop_map(|flags| u64::from(flags & 0o17_7777))
        .boxed();
    let any = any::<u64>().boxed();
    let number = prop_oneof![6 => small, 2 => flags, 1 => any]
        .prop_map(|number| number.to_le_bytes().to_vec());
    prop::collection::vec(number, 0..8).prop_map(|numbers| numbers.concat())
}

fn request() -> impl Strategy<Value = Request> {
    // Not DESTROY, after which nothing would happen any more; nor SYNCFS, which takes its time.
    let opcodes: Vec<u32> = Opcode::ALL
        .iter()
        .filter(|opcode| !matches!(opcode, Opcode::Destroy | Opcode::SyncFs))
        .map(|opcode| *opcode as u32)
        .collect();
    let names = prop::collection::vec(name(), 0..3).prop_map(|names| names.concat());
    (
        prop::sample::select(opcodes),
        0_u64..8,
        numbers(),
        names,
        prop_oneof![4 => Just(4096_u32), 1 => 0_u32..300],
    )
        .prop_map(|(opcode, node, numbers, names, room)| {
            let mut body = numbers;
            if let Some(length) = fixed_length(opcode) {
                body.resize(length, 0);
            }
            body.extend(names);
            Request {
                opcode,
                node,
                body,
                room,
            }
        })
}

/// Of most requests the structure has the right length, else few would get past the parser.
fn fixed_length(opcode: u32) -> Option<usize> {
    Some(match Opcode::from_raw(opcode)? {
        Opcode::Lookup | Opcode::Unlink | Opcode::Rmdir | Opcode::Symlink | Opcode::RemoveXattr => {
            0
        }
        Opcode::Mkdir | Opcode::Rename | Opcode::Link | Opcode::Open | Opcode::OpenDir => 8,
        Opcode::Mknod | Opcode::Rename2 | Opcode::Create | Opcode::GetAttr | Opcode::Fsync => 16,
        Opcode::Read | Opcode::ReadDir | Opcode::ReadDirPlus | Opcode::Write => 40,
        Opcode::SetAttr => 88,
        Opcode::Fallocate => 32,
        Opcode::Lseek | Opcode::Release | Opcode::ReleaseDir | Opcode::Flush => 24,
        Opcode::CopyFileRange => 56,
        _ => return None,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn random_requests_stay_inside(requests in prop::collection::vec(request(), 1..60)) {
        let config = FsConfig { max_inodes: 20, max_handles: 20, device_nodes: false, ..FsConfig::default() };
        let guest = Guest::prepared(config, |share| {
            fs::write(share.join("file"), "inside").unwrap();
            fs::create_dir(share.join("directory")).unwrap();
            symlink("..", share.join("out")).unwrap();
            rustix::fs::mkfifoat(rustix::fs::CWD, share.join("fifo"), rustix::fs::Mode::RUSR).unwrap();
        });
        let before = fs::metadata(guest.secret()).unwrap();

        for Request { opcode, node, body, room } in requests {
            if Opcode::from_raw(opcode).is_some_and(Opcode::is_one_way) {
                continue;
            }
            if let Ok(reply) = guest.raw(opcode, node, &body, room) {
                let leaks = reply.windows(11).any(|bytes| bytes == b"of the host");
                prop_assert!(!leaks);
            }
        }

        let after = fs::metadata(guest.secret()).unwrap();
        prop_assert_eq!(fs::read(guest.secret()).unwrap(), b"of the host");
        prop_assert_eq!(
            (after.mode(), after.uid(), after.ctime_nsec()),
            (before.mode(), before.uid(), before.ctime_nsec())
        );
        prop_assert_eq!(fs::read_dir(guest.secret().parent().unwrap()).unwrap().count(), 2);
    }
}
