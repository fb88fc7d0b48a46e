// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! A back end that does as it is told, up to a request at which it does something else.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::{self, JoinHandle};

pub const GET_FEATURES: u32 = 1;
pub const GET_VRING_BASE: u32 = 11;
const GET_PROTOCOL_FEATURES: u32 = 15;
const SET_PROTOCOL_FEATURES: u32 = 16;
pub const SET_VRING_ENABLE: u32 = 18;
pub const GET_CONFIG: u32 = 24;

const NEED_REPLY: u32 = 1 << 3;
const ANSWER: u32 = 1 | 1 << 2;

const FEATURES: u64 = 1 << 32 | 1 << 30 | 1 << 28;
const ACKNOWLEDGEMENTS: u64 = 1 << 3;
const CONFIGURATION_SPACE: u64 = 1 << 9;

/// What it does at that request.
#[derive(Clone)]
pub enum Deed {
    /// Says nothing, for ever.
    BeSilent,
    /// Sends these bytes and then nothing.
    Send(Vec<u8>),
    /// Sends a byte now and then, without end.
    Dribble,
    /// Closes the connection.
    HangUp,
}

/// An answer as it should be.
pub fn answer(request: u32, body: &[u8]) -> Vec<u8> {
    message(request, ANSWER, body.len() as u32, body)
}

/// Anything else.
pub fn message(request: u32, flags: u32, len: u32, body: &[u8]) -> Vec<u8> {
    [request, flags, len]
        .iter()
        .flat_map(|word| word.to_le_bytes())
        .chain(body.iter().copied())
        .collect()
}

/// Serves the other end of the connection, until it is closed, on a thread that then gives the requests it got.
pub fn scripted(at: u32, deed: Deed) -> (JoinHandle<Vec<u32>>, UnixStream) {
    scripted_later(at, 0, deed)
}

/// As [`scripted`], after the request has been fulfilled `before` times.
pub fn scripted_later(at: u32, before: usize, deed: Deed) -> (JoinHandle<Vec<u32>>, UnixStream) {
    let script = Script { at, before, deed };
    spawn(script, ACKNOWLEDGEMENTS | CONFIGURATION_SPACE)
}

/// As [`scripted`], without acknowledgements and without surprises.
pub fn silent_about_success() -> (JoinHandle<Vec<u32>>, UnixStream) {
    let script = Script {
        at: u32::MAX,
        before: 0,
        deed: Deed::HangUp,
    };
    spawn(script, CONFIGURATION_SPACE)
}

/// What is to happen, at which request, and how many of these there are before.
struct Script {
    at: u32,
    before: usize,
    deed: Deed,
}

fn spawn(script: Script, protocol: u64) -> (JoinHandle<Vec<u32>>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let thread = thread::spawn(move || {
        let mut seen = Vec::new();
        // An error is the end of the connection.
        let _ = serve(theirs, script, protocol, &mut seen);
        seen
    });
    (thread, ours)
}

fn serve(
    mut stream: UnixStream,
    Script {
        at,
        mut before,
        deed,
    }: Script,
    protocol: u64,
    seen: &mut Vec<u32>,
) -> io::Result<()> {
    loop {
        let mut header = [0; 12];
        stream.read_exact(&mut header)?;
        let word = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().unwrap());
        let (request, flags, len) = (word(0), word(4), word(8));
        let mut body = vec![0; len as usize];
        stream.read_exact(&mut body)?;
        seen.push(request);
        let is_there = request == at;
        if is_there && before == 0 {
            match &deed {
                Deed::BeSilent => {}
                Deed::Send(bytes) => stream.write_all(bytes)?,
                Deed::HangUp => return Ok(()),
                Deed::Dribble => loop {
                    thread::sleep(std::time::Duration::from_millis(20));
                    stream.write_all(&[1])?;
                },
            }
            continue;
        }
        before -= usize::from(is_there);
        let told = match request {
            GET_FEATURES => Some(FEATURES.to_le_bytes().to_vec()),
            GET_PROTOCOL_FEATURES => Some(protocol.to_le_bytes().to_vec()),
            GET_VRING_BASE => Some(vec![0; 8]),
            GET_CONFIG => Some([&body[..12], &[7; 60]].concat()),
            SET_PROTOCOL_FEATURES => None,
            _ => (flags & NEED_REPLY != 0).then(|| vec![0; 8]),
        };
        if let Some(told) = told {
            stream.write_all(&answer(request, &told))?;
        }
    }
}
