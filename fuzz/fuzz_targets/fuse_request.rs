// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Sequences of FUSE requests to a server over a real directory: no panic, and nothing outside the
//! directory is read or changed.
#![no_main]

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::PathBuf;
use std::sync::OnceLock;

use arbitrary::Arbitrary;
use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, DESC_NEXT, DESC_WRITE, Descriptor, walk};
use coracle_virtiofs::passthrough::{FsConfig, PassthroughFs, SelfFds};
use coracle_virtiofs::server::{Scratch, Server, ServerConfig};
use libfuzzer_sys::fuzz_target;

const REQUEST: u64 = 0x1000;
const REPLY: u64 = 0x2_0000;
const MEMORY: u64 = 0x4_0000;
const SECRET: &[u8] = b"of the host";

const INIT: u32 = 26;
const DESTROY: u32 = 38;
const FALLOCATE: u32 = 43;
const SYNCFS: u32 = 50;

/// The longest file that a request may ask the disk to make room for.
const MAX_ROOM: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Request {
    opcode: u8,
    node: u8,
    /// Added to the true length, which a guest may lie about.
    lie: i8,
    body: Body,
    room: u16,
}

/// The body in pieces of the shapes that bodies are made of, or as any bytes.
#[derive(Arbitrary, Debug)]
enum Body {
    Pieces(Vec<Piece>),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Piece {
    Small(u8),
    Number(u64),
    Half(u32),
    Name(Name),
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Name {
    File,
    Directory,
    Out,
    Fifo,
    Secret,
    New,
    Parent,
    Itself,
    Attribute,
}

impl Body {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Pieces(pieces) => pieces.iter().flat_map(Piece::bytes).collect(),
            Self::Bytes(bytes) => bytes.clone(),
        }
    }
}

impl Piece {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Self::Small(number) => u64::from(*number % 16).to_le_bytes().to_vec(),
            Self::Number(number) => number.to_le_bytes().to_vec(),
            Self::Half(number) => number.to_le_bytes().to_vec(),
            Self::Bytes(bytes) => bytes.clone(),
            Self::Name(name) => match name {
                Name::File => b"file\0".to_vec(),
                Name::Directory => b"directory\0".to_vec(),
                Name::Out => b"out\0".to_vec(),
                Name::Fifo => b"fifo\0".to_vec(),
                Name::Secret => b"secret\0".to_vec(),
                Name::New => b"new\0".to_vec(),
                Name::Parent => b"..\0".to_vec(),
                Name::Itself => b".\0".to_vec(),
                Name::Attribute => b"user.name\0".to_vec(),
            },
        }
    }
}

/// A directory with a secret, and in it the share, made anew for each input.
fn prepare() -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = std::env::temp_dir().join(format!("fuse_request.{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("secret"), SECRET).unwrap();
        directory
    });
    let share = directory.join("share");
    let _ = fs::remove_dir_all(&share);
    fs::create_dir_all(share.join("directory")).unwrap();
    fs::write(share.join("file"), "inside").unwrap();
    symlink("..", share.join("out")).unwrap();
    directory.clone()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes
        .get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// What would only cost time or room: the disk is not what is tested.
fn is_harmless(opcode: u32, body: &[u8]) -> bool {
    match opcode {
        SYNCFS | DESTROY | INIT => false,
        FALLOCATE => number(body, 8).saturating_add(number(body, 16)) <= MAX_ROOM,
        _ => true,
    }
}

struct Guest {
    memory: GuestMemory,
    server: Server<PassthroughFs>,
    scratch: Scratch,
    chain: Chain,
}

impl Guest {
    fn send(&mut self, opcode: u32, node: u64, body: &[u8], lie: i8, room: u32) {
        let len = (40 + body.len() as i64 + i64::from(lie)).max(0) as u32;
        let mut request = Vec::with_capacity(40 + body.len());
        request.extend_from_slice(&len.to_le_bytes());
        request.extend_from_slice(&opcode.to_le_bytes());
        request.extend_from_slice(&7_u64.to_le_bytes());
        request.extend_from_slice(&node.to_le_bytes());
        request.resize(40, 0);
        request.extend_from_slice(body);
        self.memory.write(GuestAddress(REQUEST), &request).unwrap();

        let readable = Descriptor {
            address: REQUEST,
            len: request.len() as u32,
            flags: if room > 0 { DESC_NEXT } else { 0 },
            next: 1,
        };
        let writable = Descriptor {
            address: REPLY,
            len: room,
            flags: DESC_WRITE,
            next: 0,
        };
        self.memory.write_obj(GuestAddress(0), &readable).unwrap();
        self.memory.write_obj(GuestAddress(16), &writable).unwrap();
        walk(&self.memory, GuestAddress(0), 2, 0, false, &mut self.chain).unwrap();

        let used = self.server.handle(&self.chain, &mut self.scratch);

        assert!(used <= room, "{used} bytes in a room of {room}");
        let mut reply = vec![0; used as usize];
        self.memory.read(GuestAddress(REPLY), &mut reply).unwrap();
        assert!(
            !reply.windows(SECRET.len()).any(|bytes| bytes == SECRET),
            "the secret is out"
        );
    }
}

fuzz_target!(|requests: Vec<Request>| {
    let directory = prepare();
    let before = fs::metadata(directory.join("secret")).unwrap();
    let config = FsConfig {
        max_inodes: 16,
        max_handles: 16,
        device_nodes: false,
        ..FsConfig::default()
    };
    let root = File::open(directory.join("share")).unwrap();
    let share = PassthroughFs::new(root.into(), SelfFds::open().unwrap(), config).unwrap();
    let mut guest = Guest {
        memory: GuestMemory::anonymous(&[(GuestAddress(0), MEMORY)]).unwrap(),
        server: Server::new(share, ServerConfig::default()),
        scratch: Scratch::default(),
        chain: Chain::new(),
    };
    let offer: Vec<u8> = [7_u32, 38, 131_072, u32::MAX]
        .iter()
        .flat_map(|n| n.to_le_bytes())
        .collect();
    guest.send(INIT, 0, &offer, 0, 4096);

    for request in requests.iter().take(64) {
        let opcode = u32::from(request.opcode % 56);
        let mut body = request.body.bytes();
        body.truncate(0x1_0000);
        if is_harmless(opcode, &body) {
            guest.send(
                opcode,
                u64::from(request.node % 16),
                &body,
                request.lie,
                u32::from(request.room),
            );
        }
    }

    let after = fs::metadata(directory.join("secret")).unwrap();
    assert_eq!(fs::read(directory.join("secret")).unwrap(), SECRET);
    assert_eq!(
        (after.mode(), after.uid(), after.ctime_nsec()),
        (before.mode(), before.uid(), before.ctime_nsec())
    );
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 2);
});
