// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! The host's end of a connection to an agent.
//!
//! What comes from a guest may be anything: an answer has a bounded length and is one to a call that was made, or the
//! connection ends. There is no thread and no timer here. Whoever calls waits as long as it likes, for the agent and
//! whatever else it waits for, and nothing wakes it up before.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use protobuf::Message;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, read, retry_on_intr};
use rustix::net::{SendFlags, send};
use thiserror::Error;
use ttrpc::proto::{
    Code, MESSAGE_HEADER_LENGTH, MESSAGE_TYPE_RESPONSE, MessageHeader, Request, Response,
};

use crate::AgentError;
use crate::call::Call;

/// The most bytes of an agent's answer. What agents have to say takes a few hundred.
pub const ANSWER_MAX: usize = 64 << 10;

/// The most calls that are under way, or were given up and may still be answered.
pub const CALLS_MAX: usize = 1024;

const SERVICE: &str = "coracle.agent.v1.Agent";
/// Bytes that are read at once.
const PIECE: usize = 4 << 10;

/// A connection to an agent, on which any number of calls may be under way.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    /// What the agent has not taken yet.
    outgoing: Vec<u8>,
    /// What has come of the next answer.
    incoming: Vec<u8>,
    calls: Vec<Outstanding>,
    next: u32,
    answered: u64,
}

/// A call whose answer nobody has taken yet.
#[derive(Debug)]
struct Outstanding {
    number: u32,
    answer: Option<Response>,
    /// Nobody will take the answer.
    forgotten: bool,
}

/// A call under way.
pub struct Pending<C> {
    number: u32,
    call: PhantomData<fn() -> C>,
}

/// Why a call has no result.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// The agent could not do what it was asked for.
    #[error(transparent)]
    Agent(AgentError),
    /// What answered does not know this call.
    #[error("the guest refuses the call with code {code}: {message}")]
    Status {
        /// Number of the status, as gRPC numbers them.
        code: i32,
        /// What it says about it.
        message: String,
    },
    /// The answer is not of the call's kind.
    #[error("the guest's answer cannot be read")]
    Answer(#[source] protobuf::Error),
    /// The agent has left [`CALLS_MAX`] calls unanswered, those that were given up included. This one was not made.
    #[error("the guest's agent answers no more: {CALLS_MAX} calls are under way")]
    Silent,
    /// The answer is longer than [`ANSWER_MAX`].
    #[error("the guest's answer has {0} bytes, of {ANSWER_MAX} at most")]
    TooLong(u32),
    /// Nothing was asked that this would be an answer to.
    #[error("the guest answers what it was not asked (message of type {kind} to call {call})")]
    Unasked {
        /// Type of the message.
        kind: u8,
        /// Number of the call that it names.
        call: u32,
    },
    /// The agent has closed the connection.
    #[error("the guest's agent hung up")]
    HungUp,
    /// The time for the call is over.
    #[error("the guest's agent did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The connection failed.
    #[error("the connection to the guest's agent failed")]
    Connection(#[from] io::Error),
}

impl Client {
    /// A client on a stream that is connected to an agent.
    ///
    /// # Errors
    ///
    /// The stream cannot be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            outgoing: Vec::new(),
            incoming: Vec::new(),
            calls: Vec::new(),
            next: 1,
            answered: 0,
        })
    }

    /// Begins a call. Its answer is to be taken by [`Self::take`].
    ///
    /// # Errors
    ///
    /// [`CallError::Silent`], [`CallError::HungUp`] and [`CallError::Connection`].
    pub fn send<C: Call>(&mut self, request: &C) -> Result<Pending<C>, CallError> {
        if self.calls.len() >= CALLS_MAX {
            return Err(CallError::Silent);
        }
        let payload = request.write_to_bytes().map_err(io::Error::from)?;
        let request = Request {
            service: SERVICE.into(),
            method: C::METHOD.into(),
            payload,
            ..Default::default()
        };
        let body = request.write_to_bytes().map_err(io::Error::from)?;
        let length = u32::try_from(body.len()).map_err(io::Error::other)?;
        let number = self.next;
        // The client's numbers are the odd ones. There are enough for a call each millisecond of three weeks.
        self.next = number
            .checked_add(2)
            .ok_or_else(|| io::Error::other("a connection can take no more calls"))?;
        let header: Vec<u8> = MessageHeader::new_request(number, length).into();
        self.outgoing.extend(header);
        self.outgoing.extend(body);
        self.calls.push(Outstanding {
            number,
            answer: None,
            forgotten: false,
        });
        self.flush()?;
        Ok(Pending {
            number,
            call: PhantomData,
        })
    }

    /// The answer to a call, if it has come by now; it can be taken once. Never waits: until there is one, wait for
    /// [`Self::interest`] on the client's descriptor.
    ///
    /// # Errors
    ///
    /// [`CallError`]. But for the agent's own failure, and its refusal, the connection has ended, and with it all calls.
    pub fn take<C: Call>(&mut self, call: &Pending<C>) -> Result<Option<C::Response>, CallError> {
        let result = match self.take_response(call.number) {
            Ok(None) => return Ok(None),
            Ok(Some(response)) => result(response),
            Err(error) => Err(error),
        };
        match result {
            Ok(answer) => Ok(Some(answer)),
            Err(error @ (CallError::Agent(_) | CallError::Status { .. })) => Err(error),
            Err(error) => {
                // Whatever comes after is not to be trusted either. It may have been shut down already.
                let _ = self.stream.shutdown(Shutdown::Both);
                Err(error)
            }
        }
    }

    /// Gives a call up. What is asked for may still be done; the answer, once it comes, is thrown away.
    pub fn forget<C>(&mut self, call: Pending<C>) {
        let Some(index) = self.calls.iter().position(|it| it.number == call.number) else {
            return;
        };
        match &mut self.calls[index] {
            Outstanding {
                answer: None,
                forgotten,
                ..
            } => *forgotten = true,
            _ => drop(self.calls.swap_remove(index)),
        }
    }

    /// Calls and waits for the answer, for `timeout` at most.
    ///
    /// # Errors
    ///
    /// [`CallError`].
    pub fn call<C: Call>(
        &mut self,
        request: &C,
        timeout: Duration,
    ) -> Result<C::Response, CallError> {
        let deadline = Instant::now() + timeout;
        let call = self.send(request)?;
        loop {
            if let Some(answer) = self.take(&call)? {
                return Ok(answer);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                self.forget(call);
                return Err(CallError::TimedOut(timeout));
            }
            let mut descriptors = [PollFd::new(&self.stream, self.interest())];
            let left = Timespec::try_from(left).ok();
            retry_on_intr(|| poll(&mut descriptors, left.as_ref())).map_err(lost)?;
        }
    }

    /// What to wait for on the client's descriptor while there are calls under way.
    #[must_use]
    pub fn interest(&self) -> PollFlags {
        match self.outgoing.is_empty() {
            true => PollFlags::IN,
            false => PollFlags::IN | PollFlags::OUT,
        }
    }

    /// How many answers have come so far, taken or not.
    ///
    /// [`Self::take`] for one call may bring the answer to another, which then does not show on the descriptor: who
    /// waits for several takes once more for each where this has changed meanwhile, before waiting.
    #[must_use]
    pub fn answered(&self) -> u64 {
        self.answered
    }

    /// Reads until the answer to call `number` is there or there is no more to read.
    fn take_response(&mut self, number: u32) -> Result<Option<Response>, CallError> {
        self.flush()?;
        loop {
            while self.take_frame()? {}
            let done = |call: &Outstanding| call.number == number && call.answer.is_some();
            if let Some(index) = self.calls.iter().position(done) {
                return Ok(self.calls.swap_remove(index).answer);
            }
            let mut piece = [0; PIECE];
            match retry_on_intr(|| read(&self.stream, &mut piece)) {
                Ok(0) => return Err(CallError::HungUp),
                Ok(length) => self.incoming.extend(&piece[..length]),
                Err(Errno::AGAIN) => return Ok(None),
                Err(errno) => return Err(lost(errno)),
            }
        }
    }

    /// Sorts in what has come, if it is a whole message; says whether it was.
    fn take_frame(&mut self) -> Result<bool, CallError> {
        let Some((header, rest)) = self.incoming.split_at_checked(MESSAGE_HEADER_LENGTH) else {
            return Ok(false);
        };
        let header = MessageHeader::from(header);
        let unasked = CallError::Unasked {
            kind: header.type_,
            call: header.stream_id,
        };
        let awaits = |call: &Outstanding| call.number == header.stream_id && call.answer.is_none();
        let (MESSAGE_TYPE_RESPONSE, Some(index)) =
            (header.type_, self.calls.iter().position(awaits))
        else {
            return Err(unasked);
        };
        let length = usize::try_from(header.length).unwrap_or(usize::MAX);
        if length > ANSWER_MAX {
            return Err(CallError::TooLong(header.length));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(false);
        };
        let answer = Response::parse_from_bytes(body).map_err(CallError::Answer)?;
        match &mut self.calls[index] {
            call if call.forgotten => drop(self.calls.swap_remove(index)),
            call => call.answer = Some(answer),
        }
        self.incoming.drain(..MESSAGE_HEADER_LENGTH + length);
        self.answered += 1;
        Ok(true)
    }

    /// Writes as much as the agent takes.
    fn flush(&mut self) -> Result<(), CallError> {
        while !self.outgoing.is_empty() {
            let written = retry_on_intr(|| send(&self.stream, &self.outgoing, SendFlags::NOSIGNAL));
            match written {
                Ok(length) => drop(self.outgoing.drain(..length)),
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(lost(errno)),
            }
        }
        Ok(())
    }
}

/// What a response says.
fn result<R: Message>(response: Response) -> Result<R, CallError> {
    match response.status.into_option() {
        Some(status) if status.code.value() != Code::OK as i32 => {
            Err(match AgentError::from_status(&status) {
                Some(error) => CallError::Agent(error),
                None => CallError::Status {
                    code: status.code.value(),
                    message: status.message,
                },
            })
        }
        _ => R::parse_from_bytes(&response.payload).map_err(CallError::Answer),
    }
}

/// A failure of the stream: an agent that is gone shows in several ways.
fn lost(errno: Errno) -> CallError {
    match errno {
        Errno::PIPE | Errno::CONNRESET => CallError::HungUp,
        _ => CallError::Connection(errno.into()),
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

impl<C> fmt::Debug for Pending<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pending").field(&self.number).finish()
    }
}
