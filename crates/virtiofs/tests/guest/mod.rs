// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A guest's kernel as far as the server can tell: it lays requests out in memory as a driver does, and
//! reads replies.
#![allow(dead_code, reason = "each test target uses its part")]

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use coracle_memory::{GuestAddress, GuestMemory};
use coracle_virtio::{Chain, DESC_NEXT, DESC_WRITE, Descriptor, walk};
use coracle_virtiofs::fuse::abi::*;
use coracle_virtiofs::fuse::flags::init;
use coracle_virtiofs::fuse::{Opcode, flags};
use coracle_virtiofs::passthrough::{FsConfig, PassthroughFs, SelfFds};
use coracle_virtiofs::server::{Scratch, Server, ServerConfig};
use tempfile::TempDir;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The root of the share.
pub const ROOT: u64 = ROOT_ID;

/// Where the descriptor table is in memory.
pub const TABLE: u64 = 0;
const REQUEST: u64 = 0x1000;
const REPLY: u64 = 0x18_0000;
/// Size of the memory; its last pages are free for rings.
pub const MEMORY: u64 = 0x40_0000;
/// Number of descriptors in the table.
pub const QUEUE_SIZE: u16 = 16;
/// Room for a reply behind its header, unless a test asks for less.
const REPLY_ROOM: u32 = 0x11_0000;

/// The way to a server.
pub trait Link {
    /// Hands over the chain that starts at the first descriptor of the table at [`TABLE`]; gives the length
    /// from the used ring.
    fn exchange(&self, memory: &GuestMemory) -> u32;
}

/// A server in this process, called as a function.
impl Link for Server<PassthroughFs> {
    fn exchange(&self, memory: &GuestMemory) -> u32 {
        let mut chain = Chain::new();
        walk(
            memory,
            GuestAddress(TABLE),
            QUEUE_SIZE,
            0,
            false,
            &mut chain,
        )
        .unwrap();
        self.handle(&chain, &mut Scratch::default())
    }
}

/// A directory of the host, the way to a server that shares it, and a guest's kernel that uses it.
pub struct Guest {
    link: Box<dyn Link>,
    /// Holds `share` and, beside it, what the guest must not reach.
    directory: TempDir,
    memory: GuestMemory,
    uid: u32,
    gid: u32,
}

/// What the host says when it refuses.
pub type Answer<T> = Result<T, i32>;

impl Guest {
    pub fn new() -> Self {
        Self::with(FsConfig::default())
    }

    pub fn with(config: FsConfig) -> Self {
        Self::prepared(config, |_| {})
    }

    /// A guest of a share to which `prepare` has done something before the server started.
    pub fn prepared(config: FsConfig, prepare: impl FnOnce(&Path)) -> Self {
        rustix::process::umask(rustix::fs::Mode::empty());
        let directory = directory();
        prepare(&directory.path().join("share"));
        let root: OwnedFd = fs::File::open(directory.path().join("share"))
            .unwrap()
            .into();
        let share = PassthroughFs::new(root, SelfFds::open().unwrap(), config).unwrap();
        let memory = GuestMemory::anonymous(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self::linked(
            Box::new(Server::new(share, ServerConfig::default())),
            memory,
            directory,
        )
    }

    /// A guest whose server shares `share` in `directory`.
    pub fn linked(link: Box<dyn Link>, memory: GuestMemory, directory: TempDir) -> Self {
        let uid = rustix::process::geteuid().as_raw();
        let gid = rustix::process::getegid().as_raw();
        let mut guest = Self {
            link,
            directory,
            memory,
            uid,
            gid,
        };
        guest.init().unwrap();
        guest
    }

    /// The shared directory as the host sees it.
    pub fn share(&self) -> PathBuf {
        self.directory.path().join("share")
    }

    /// A file of the host beside the shared directory.
    pub fn secret(&self) -> PathBuf {
        self.directory.path().join("secret")
    }

    /// The same guest, in which this user asks from now on.
    pub fn asking_as(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    pub fn init(&mut self) -> Answer<InitOut> {
        let offer = InitIn {
            major: 7,
            minor: 38,
            max_readahead: 128 * 1024,
            flags: !init::WRITEBACK_CACHE,
            ..InitIn::default()
        };
        self.ask(Opcode::Init, 0, &[offer.as_bytes()])
    }

    /// Sends a request and gives the body of the reply, or the error number.
    pub fn call(&self, opcode: Opcode, node: u64, body: &[&[u8]]) -> Answer<Vec<u8>> {
        self.raw(opcode as u32, node, &body.concat(), REPLY_ROOM)
    }

    /// As [`call`](Self::call), for a reply of one structure.
    pub fn ask<T: FromBytes + Immutable + KnownLayout>(
        &self,
        opcode: Opcode,
        node: u64,
        body: &[&[u8]],
    ) -> Answer<T> {
        let reply = self.call(opcode, node, body)?;
        Ok(T::read_from_bytes(&reply)
            .unwrap_or_else(|_| panic!("a reply of {} bytes", reply.len())))
    }

    /// As [`call`](Self::call), for a reply without a body.
    pub fn tell(&self, opcode: Opcode, node: u64, body: &[&[u8]]) -> Answer<()> {
        let reply = self.call(opcode, node, body)?;
        assert_eq!(reply, [], "a reply where there should be none");
        Ok(())
    }

    /// Sends any number as opcode and any bytes as body, with `room` for a reply behind its header.
    pub fn raw(&self, opcode: u32, node: u64, body: &[u8], room: u32) -> Answer<Vec<u8>> {
        let header = InHeader {
            len: u32::try_from(size_of::<InHeader>() + body.len()).unwrap(),
            opcode,
            unique: 42,
            nodeid: node,
            uid: self.uid,
            gid: self.gid,
            ..InHeader::default()
        };
        let used = self.bytes(&[header.as_bytes(), body].concat(), 16 + room);
        let out: OutHeader = self.memory.read_obj(GuestAddress(REPLY)).unwrap();
        assert_eq!((out.len, out.unique), (used, 42), "the header of a reply");
        let mut reply = vec![0; used as usize - size_of::<OutHeader>()];
        self.memory
            .read(GuestAddress(REPLY + 16), &mut reply)
            .unwrap();
        match out.error {
            0 => Ok(reply),
            error => {
                assert_eq!(reply, [], "an error with a body");
                Err(-error)
            }
        }
    }

    /// Sends any bytes, with `room` for any reply; gives the length for the used ring.
    pub fn bytes(&self, request: &[u8], room: u32) -> u32 {
        let len = u32::try_from(request.len()).unwrap();
        let (head, data) = (len.min(40), len - len.min(40));
        let (reply_head, reply_data) = (room.min(16), room - room.min(16));
        let parts = [
            (REQUEST, head, 0),
            (REQUEST + 40, data, 0),
            (REPLY, reply_head, DESC_WRITE),
            (REPLY + 16, reply_data, DESC_WRITE),
        ];
        let parts: Vec<_> = parts.into_iter().filter(|(_, len, _)| *len > 0).collect();
        self.memory.write(GuestAddress(REQUEST), request).unwrap();
        for (index, (address, len, flags)) in parts.iter().enumerate() {
            let last = index + 1 == parts.len();
            let descriptor = Descriptor {
                address: *address,
                len: *len,
                flags: flags | if last { 0 } else { DESC_NEXT },
                next: u16::try_from(index + 1).unwrap(),
            };
            self.memory
                .write_obj(GuestAddress(TABLE + 16 * index as u64), &descriptor)
                .unwrap();
        }
        self.link.exchange(&self.memory)
    }

    pub fn lookup(&self, parent: u64, name: &str) -> Answer<EntryOut> {
        self.ask(Opcode::Lookup, parent, &[&c(name)])
    }

    /// The node of a file that must be there.
    pub fn node(&self, name: &str) -> u64 {
        self.lookup(ROOT, name).unwrap().nodeid
    }

    pub fn forget(&self, node: u64, nlookup: u64) {
        let header = InHeader {
            len: 48,
            opcode: 2,
            nodeid: node,
            ..InHeader::default()
        };
        let used = self.bytes(
            &[header.as_bytes(), ForgetIn { nlookup }.as_bytes()].concat(),
            0,
        );
        assert_eq!(used, 0);
    }

    pub fn attributes(&self, node: u64) -> Answer<Attr> {
        let out: AttrOut = self.ask(Opcode::GetAttr, node, &[GetAttrIn::default().as_bytes()])?;
        Ok(out.attr)
    }

    pub fn set_attributes(&self, node: u64, change: SetAttrIn) -> Answer<Attr> {
        let out: AttrOut = self.ask(Opcode::SetAttr, node, &[change.as_bytes()])?;
        Ok(out.attr)
    }

    pub fn mkdir(&self, parent: u64, name: &str, mode: u32) -> Answer<EntryOut> {
        self.ask(
            Opcode::Mkdir,
            parent,
            &[MkdirIn { mode, umask: 0 }.as_bytes(), &c(name)],
        )
    }

    pub fn mknod(&self, parent: u64, name: &str, mode: u32, rdev: u32) -> Answer<EntryOut> {
        let arg = MknodIn {
            mode,
            rdev,
            ..MknodIn::default()
        };
        self.ask(Opcode::Mknod, parent, &[arg.as_bytes(), &c(name)])
    }

    pub fn symlink(&self, parent: u64, name: &str, target: &str) -> Answer<EntryOut> {
        self.ask(Opcode::Symlink, parent, &[&c(name), &c(target)])
    }

    pub fn link(&self, node: u64, parent: u64, name: &str) -> Answer<EntryOut> {
        self.ask(
            Opcode::Link,
            parent,
            &[LinkIn { oldnodeid: node }.as_bytes(), &c(name)],
        )
    }

    pub fn unlink(&self, parent: u64, name: &str) -> Answer<()> {
        self.tell(Opcode::Unlink, parent, &[&c(name)])
    }

    pub fn rename(
        &self,
        parent: u64,
        name: &str,
        newdir: u64,
        new_name: &str,
        flags: u32,
    ) -> Answer<()> {
        let arg = Rename2In {
            newdir,
            flags,
            padding: 0,
        };
        self.tell(
            Opcode::Rename2,
            parent,
            &[arg.as_bytes(), &c(name), &c(new_name)],
        )
    }

    pub fn create(
        &self,
        parent: u64,
        name: &str,
        mode: u32,
        flags: i32,
    ) -> Answer<(EntryOut, OpenOut)> {
        let arg = CreateIn {
            flags: flags.cast_unsigned(),
            mode,
            ..CreateIn::default()
        };
        let reply = self.call(Opcode::Create, parent, &[arg.as_bytes(), &c(name)])?;
        let (entry, opened) = EntryOut::read_from_prefix(&reply).unwrap();
        Ok((entry, OpenOut::read_from_bytes(opened).unwrap()))
    }

    pub fn open(&self, node: u64, flags: i32) -> Answer<u64> {
        self.open_with(node, flags, 0).map(|out| out.fh)
    }

    pub fn open_with(&self, node: u64, flags: i32, open_flags: u32) -> Answer<OpenOut> {
        let arg = OpenIn {
            flags: flags.cast_unsigned(),
            open_flags,
        };
        self.ask(Opcode::Open, node, &[arg.as_bytes()])
    }

    pub fn opendir(&self, node: u64) -> Answer<u64> {
        let out: OpenOut = self.ask(Opcode::OpenDir, node, &[OpenIn::default().as_bytes()])?;
        Ok(out.fh)
    }

    pub fn release(&self, node: u64, fh: u64) -> Answer<()> {
        self.tell(
            Opcode::Release,
            node,
            &[ReleaseIn {
                fh,
                ..ReleaseIn::default()
            }
            .as_bytes()],
        )
    }

    pub fn read(&self, node: u64, fh: u64, offset: u64, size: u32) -> Answer<Vec<u8>> {
        let arg = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        self.call(Opcode::Read, node, &[arg.as_bytes()])
    }

    pub fn write(&self, node: u64, fh: u64, offset: u64, data: &[u8]) -> Answer<u32> {
        self.write_with(
            node,
            WriteIn {
                fh,
                offset,
                ..WriteIn::default()
            },
            data,
        )
    }

    /// Writes with the flags of `arg`.
    pub fn write_with(&self, node: u64, arg: WriteIn, data: &[u8]) -> Answer<u32> {
        let arg = WriteIn {
            size: u32::try_from(data.len()).unwrap(),
            ..arg
        };
        let out: WriteOut = self.ask(Opcode::Write, node, &[arg.as_bytes(), data])?;
        Ok(out.size)
    }

    /// The entries from `offset` on that fit into `size` bytes.
    pub fn readdir(
        &self,
        node: u64,
        fh: u64,
        offset: u64,
        size: u32,
        plus: bool,
    ) -> Answer<Vec<Listed>> {
        let opcode = if plus {
            Opcode::ReadDirPlus
        } else {
            Opcode::ReadDir
        };
        let arg = ReadIn {
            fh,
            offset,
            size,
            ..ReadIn::default()
        };
        let reply = self.call(opcode, node, &[arg.as_bytes()])?;
        assert!(
            reply.len() <= size as usize,
            "{} bytes in reply to {size}",
            reply.len()
        );
        Ok(Listed::parse(&reply, plus))
    }

    pub fn setxattr(&self, node: u64, name: &str, value: &[u8]) -> Answer<()> {
        let arg = SetXattrIn {
            size: u32::try_from(value.len()).unwrap(),
            flags: 0,
        };
        self.tell(Opcode::SetXattr, node, &[arg.as_bytes(), &c(name), value])
    }

    pub fn getxattr(&self, node: u64, name: &str, size: u32) -> Answer<Vec<u8>> {
        let arg = GetXattrIn { size, padding: 0 };
        self.call(Opcode::GetXattr, node, &[arg.as_bytes(), &c(name)])
    }

    pub fn listxattr(&self, node: u64, size: u32) -> Answer<Vec<u8>> {
        self.call(
            Opcode::ListXattr,
            node,
            &[GetXattrIn { size, padding: 0 }.as_bytes()],
        )
    }
}

/// A directory with `share`, and beside it a file that no guest may reach.
pub fn directory() -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("share")).unwrap();
    fs::write(directory.path().join("secret"), "of the host").unwrap();
    directory
}

/// An entry of a directory as the guest gets it.
#[derive(Debug)]
pub struct Listed {
    pub name: String,
    pub inode: u64,
    pub kind: u32,
    pub next_offset: u64,
    /// With READDIRPLUS.
    pub entry: Option<EntryOut>,
}

impl Listed {
    fn parse(mut reply: &[u8], plus: bool) -> Vec<Self> {
        let mut all = Vec::new();
        while !reply.is_empty() {
            let before = reply.len();
            let entry = plus.then(|| {
                let (entry, rest) = EntryOut::read_from_prefix(reply).unwrap();
                reply = rest;
                entry
            });
            let (dirent, rest) = Dirent::read_from_prefix(reply).unwrap();
            let (name, rest) = rest.split_at(dirent.namelen as usize);
            let length = before - rest.len();
            reply = &rest[length.next_multiple_of(8) - length..];
            all.push(Self {
                name: String::from_utf8(name.to_vec()).unwrap(),
                inode: dirent.ino,
                kind: dirent.kind,
                next_offset: dirent.off,
                entry,
            });
        }
        all
    }
}

/// A name as it goes over the wire.
pub fn c(name: &str) -> Vec<u8> {
    [name.as_bytes(), b"\0"].concat()
}

/// A change of size.
pub fn size(size: u64) -> SetAttrIn {
    SetAttrIn {
        valid: flags::setattr::SIZE,
        size,
        ..SetAttrIn::default()
    }
}

/// A change of mode.
pub fn mode(mode: u32) -> SetAttrIn {
    SetAttrIn {
        valid: flags::setattr::MODE,
        mode,
        ..SetAttrIn::default()
    }
}
