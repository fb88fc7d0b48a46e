// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Decoding layers on threads of their own.
//!
//! Each thread takes the lowest layer that nobody has taken, and hands its content over in chunks, through a queue of
//! bounded length that each layer has. The layer that is being applied is always one that a thread has: layers are taken
//! in the order in which they are applied, and only so many ahead of it, since even a layer that is decoded to its end
//! takes up memory until it is applied.

use std::io::{self, Read};
use std::iter::Enumerate;
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::vec::IntoIter;

use super::decoder::{Closed, Decoder, End};
use super::{Applying, UnpackError, may_be_damage};
use crate::digest::{Algorithm, Digest};

/// Bytes of a chunk.
const CHUNK: usize = 256 << 10;
/// Most bytes that are decoded and not yet applied, over all threads.
const BUDGET: usize = 32 << 20;

/// What a decoder hands over.
enum Message {
    Chunk(Vec<u8>, usize),
    Failed(io::Error),
    End(End),
}

/// A decoder's end of a queue.
struct Giving<'p> {
    layer: Closed<'p>,
    messages: SyncSender<Message>,
    /// Chunks that have been applied, to be filled again.
    used: Receiver<Vec<u8>>,
}

/// The other end: a layer's content, in order.
struct Taking {
    messages: Receiver<Message>,
    used: Sender<Vec<u8>>,
    chunk: Vec<u8>,
    position: usize,
    length: usize,
    end: Option<End>,
}

/// Applies all layers, which `count` threads decode.
pub(super) fn unpack(
    mut applying: Applying<'_>,
    layers: Vec<Closed<'_>>,
    count: usize,
) -> Result<(), UnpackError> {
    let all = layers.clone();
    // One layer more than threads, so that none of those waits for the end of the one that is applied.
    let in_flight = count + 1;
    // One chunk more is being filled, and one applied.
    let depth = (BUDGET / CHUNK / in_flight).saturating_sub(2).max(1);
    let (giving, taking): (Vec<Giving<'_>>, Vec<Taking>) =
        layers.into_iter().map(|layer| queue(layer, depth)).unzip();
    let (permit, permits) = channel();
    for _ in 0..in_flight {
        // The other end is right here.
        let _ = permit.send(());
    }
    let giving = &Mutex::new((permits, giving.into_iter().enumerate()));
    let wanted = &Wanted::default();
    // All that threads wait for goes with the closure, so that they end when it does.
    thread::scope(move |scope| {
        let _ending = Ending(wanted);
        let work = move || {
            while let Some((index, layer)) = next(giving) {
                layer.decode(index, wanted);
            }
        };
        let threads = (0..count)
            .map_while(|_| thread::Builder::new().spawn_scoped(scope, work).ok())
            .count();
        // The host has a limit on threads, too.
        if threads == 0 {
            return applying.one_by_one(all);
        }
        for (index, mut taking) in taking.into_iter().enumerate() {
            wanted.apply(index);
            let outcome = applying.apply(index, &mut taking);
            if let Err(error) = &outcome {
                wanted.stop(may_be_damage(error).then_some(index));
            }
            applying.judge(index, outcome, || taking.end())?;
            // Without a layer that is left to take, nobody waits for it.
            let _ = permit.send(());
        }
        Ok(applying.applier.finish()?)
    })
}

/// Layers that nobody has taken, and permits to take one.
type Waiting<'p> = (Receiver<()>, Enumerate<IntoIter<Giving<'p>>>);

/// Waits until the next layer may be taken; `None` where there is none, or no more are applied.
fn next<'p>(waiting: &Mutex<Waiting<'p>>) -> Option<(usize, Giving<'p>)> {
    // Those who wait for the lock want the same.
    let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.0.recv().ok()?;
    waiting.1.next()
}

/// What the decoders are still to do.
#[derive(Default)]
struct Wanted {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Clone, Copy, Default)]
struct State {
    /// The layer that is being applied.
    applied: usize,
    is_stopped: bool,
    /// The layer of whose blob the end is wanted nevertheless.
    end_of: Option<usize>,
}

impl Wanted {
    fn apply(&self, index: usize) {
        self.change(|state| state.applied = index);
    }

    fn stop(&self, end_of: Option<usize>) {
        self.change(|state| {
            state.is_stopped = true;
            state.end_of = end_of;
        });
    }

    fn content(&self) -> bool {
        !self.state().is_stopped
    }

    fn end(&self, index: usize) -> bool {
        let state = self.state();
        !state.is_stopped || state.end_of == Some(index)
    }

    /// Waits until the layer is applied, or nothing is any more.
    fn turn(&self, index: usize) -> io::Result<()> {
        let state = self
            .changed
            .wait_while(self.state(), |state| {
                !state.is_stopped && state.applied != index
            })
            .unwrap_or_else(PoisonError::into_inner);
        match state.is_stopped {
            true => Err(io::ErrorKind::BrokenPipe.into()),
            false => Ok(()),
        }
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state());
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// However applying ends, nobody waits for his turn any more.
struct Ending<'w>(&'w Wanted);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.stop(None);
    }
}

fn queue(layer: Closed<'_>, depth: usize) -> (Giving<'_>, Taking) {
    let (messages, taken) = sync_channel(depth);
    let (used, unused) = channel();
    let giving = Giving {
        layer,
        messages,
        used: unused,
    };
    let taking = Taking {
        messages: taken,
        used,
        chunk: Vec::new(),
        position: 0,
        length: 0,
        end: None,
    };
    (giving, taking)
}

impl Giving<'_> {
    /// Decodes until the end, or until nobody takes what is decoded.
    fn decode(self, index: usize, wanted: &Wanted) {
        let mut decoder = Decoder::open(self.layer, Box::new(move || wanted.turn(index)));
        while wanted.content() {
            let mut chunk = self.used.try_recv().unwrap_or_else(|_| vec![0; CHUNK]);
            let (length, error) = fill(&mut decoder, &mut chunk);
            let is_last = length < chunk.len();
            if self.messages.send(Message::Chunk(chunk, length)).is_err() {
                return;
            }
            if let Some(error) = error
                && self.messages.send(Message::Failed(error)).is_err()
            {
                return;
            }
            if is_last {
                break;
            }
        }
        if wanted.end(index) {
            // Nobody may want to know any more.
            let _ = self.messages.send(Message::End(decoder.end()));
        }
    }
}

/// Fills the chunk as far as the stream goes.
fn fill(stream: &mut impl Read, chunk: &mut [u8]) -> (usize, Option<io::Error>) {
    let mut length = 0;
    while length < chunk.len() {
        match stream.read(&mut chunk[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (length, Some(error)),
        }
    }
    (length, None)
}

impl Taking {
    /// How the layer ends; what is left of its content is passed over.
    fn end(self) -> End {
        let messages = self.messages.iter().filter_map(|message| match message {
            Message::End(end) => Some(end),
            Message::Chunk(..) | Message::Failed(_) => None,
        });
        // Without an end, the thread has panicked, and so does the scope that it is in.
        self.end.or(messages.into_iter().next()).unwrap_or(End {
            found: Digest::of(Algorithm::Sha256, b""),
            blob: Err(io::ErrorKind::BrokenPipe.into()),
        })
    }
}

impl Read for Taking {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.position == self.length && self.end.is_none() {
            let next = self.messages.recv();
            match next.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))? {
                Message::Chunk(chunk, length) => {
                    let used = std::mem::replace(&mut self.chunk, chunk);
                    (self.position, self.length) = (0, length);
                    if !used.is_empty() {
                        // The thread may have come to the layer's end.
                        let _ = self.used.send(used);
                    }
                }
                Message::Failed(error) => return Err(error),
                Message::End(end) => self.end = Some(end),
            }
        }
        let count = (&self.chunk[self.position..self.length]).read(buffer)?;
        self.position += count;
        Ok(count)
    }
}
