// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The FUSE server: one request of a descriptor chain in, one reply into the same chain out.
//!
//! It knows no queue, no socket and no thread, so that a test, a fuzz target, a vhost-user daemon and a
//! VMM's own device all call the same function.

mod dispatch;
mod encode;
mod entries;
mod negotiation;

use std::sync::atomic::{AtomicBool, Ordering};

use coracle_virtio::{Chain, Reader};
use rustix::io::Errno;
use zerocopy::IntoBytes;

use crate::filesystem::FileSystem;
use crate::fuse::abi::{InHeader, OutHeader};
use crate::fuse::{Opcode, Operation};
use dispatch::Payload;

/// The longest request that is read as a whole: SETXATTR with its value of at most 64 KiB. The data
/// of a WRITE is not read but passed on.
const MAX_BODY: usize = 68 * 1024;

/// What a server offers to the guest's kernel.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Mounts below the shared directory get device numbers of their own in the guest, so that inode numbers
    /// stay unique and tools see where a file system ends.
    pub submounts: bool,
    /// The guest collects writes in its page cache. Faster, and wrong where somebody else writes too.
    pub writeback_cache: bool,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            submounts: true,
            writeback_cache: false,
        }
    }
}

/// Buffers that one thread uses for one request after the other.
#[derive(Debug, Default)]
pub struct Scratch {
    request: Vec<u8>,
    reply: Vec<u8>,
}

/// A FUSE server over a file system.
#[derive(Debug)]
pub struct Server<F> {
    file_system: F,
    config: ServerConfig,
    initialized: AtomicBool,
}

impl<F: FileSystem> Server<F> {
    /// A server that waits for its guest's INIT.
    pub const fn new(file_system: F, config: ServerConfig) -> Self {
        Self {
            file_system,
            config,
            initialized: AtomicBool::new(false),
        }
    }

    /// The file system behind it.
    pub const fn file_system(&self) -> &F {
        &self.file_system
    }

    /// Forgets the guest's kernel and all that it held, as at a reset of the device.
    pub fn reset(&self) {
        self.initialized.store(false, Ordering::Release);
        self.file_system.destroy();
    }

    /// Carries out the request in `chain`, writes the reply into it, and says how many bytes that is: the
    /// length for the used ring.
    ///
    /// Whatever the guest wrote, it is answered as far as there is room for an answer: with 0 bytes where
    /// the protocol has no reply, where the request has no complete header, or where the chain has no room.
    pub fn handle(&self, chain: &Chain, scratch: &mut Scratch) -> u32 {
        let mut request = chain.readable();
        let Ok(header) = request.read_obj::<InHeader>() else {
            return 0;
        };
        let opcode = Opcode::from_raw(header.opcode);
        let reply = Reply {
            chain,
            unique: header.unique,
        };
        let one_way = opcode.is_some_and(Opcode::is_one_way);
        // What cannot be answered is not begun: it might give the guest something that it never learns of.
        if !one_way && reply.room().is_none() {
            return 0;
        }
        scratch.reply.clear();
        match opcode
            .ok_or(Errno::NOSYS)
            .and_then(|opcode| self.execute(&header, opcode, request, &reply, scratch))
        {
            _ if one_way => 0,
            Ok(Payload::InScratch) => reply.send(&scratch.reply),
            Ok(Payload::InPlace(length)) => reply.finish(length, 0),
            Err(error) => reply.finish(0, error.raw_os_error()),
        }
    }

    fn execute(
        &self,
        header: &InHeader,
        opcode: Opcode,
        mut request: Reader<'_>,
        reply: &Reply<'_>,
        scratch: &mut Scratch,
    ) -> Result<Payload, Errno> {
        let length = body_length(header, &request)?;
        let parsed = Operation::parsed_length(opcode, length);
        if parsed > MAX_BODY {
            return Err(Errno::TOOBIG);
        }
        // Copied out once: what is checked below is what is used, whatever the guest writes meanwhile.
        scratch.request.resize(parsed, 0);
        request
            .read_exact(&mut scratch.request)
            .map_err(|_| Errno::INVAL)?;
        let operation = Operation::parse(opcode, &scratch.request)?;
        let data = length - parsed;
        self.dispatch(
            header,
            operation,
            (request, data),
            reply,
            &mut scratch.reply,
        )
    }
}

/// How many bytes belong to the request behind its header. The chain may have more, never less.
fn body_length(header: &InHeader, request: &Reader<'_>) -> Result<usize, Errno> {
    let extensions = usize::from(header.total_extlen) * 8;
    usize::try_from(header.len)
        .ok()
        .and_then(|length| length.checked_sub(size_of::<InHeader>()))
        .filter(|length| *length <= request.remaining())
        // No extension is negotiated; what claims to be one is not read as something else.
        .and_then(|length| length.checked_sub(extensions))
        .ok_or(Errno::INVAL)
}

/// The room for a reply.
struct Reply<'c> {
    chain: &'c Chain,
    unique: u64,
}

impl Reply<'_> {
    /// Bytes of room behind the header, if there is room for a header.
    fn room(&self) -> Option<usize> {
        self.chain
            .writable()
            .remaining()
            .checked_sub(size_of::<OutHeader>())
    }

    /// Writes a header and `body`.
    fn send(&self, body: &[u8]) -> u32 {
        let mut writer = self.chain.writable();
        if writer.skip(size_of::<OutHeader>()).is_err() || writer.write_all(body).is_err() {
            return self.finish(0, Errno::IO.raw_os_error());
        }
        self.finish(body.len(), 0)
    }

    /// Writes the header of a reply, behind which `length` bytes are in place.
    fn finish(&self, length: usize, error: i32) -> u32 {
        let Ok(len) = u32::try_from(size_of::<OutHeader>() + length) else {
            return 0;
        };
        let header = OutHeader {
            len,
            error: -error,
            unique: self.unique,
        };
        match self.chain.writable().write_all(header.as_bytes()) {
            Ok(()) => len,
            Err(_) => 0,
        }
    }
}
