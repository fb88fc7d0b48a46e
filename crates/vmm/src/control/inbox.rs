// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests as they arrive: bytes to lines to requests, and the descriptors that come with them.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;
use thiserror::Error;

use super::protocol::Request;

/// The longest request in bytes.
const MAX_LINE: usize = 4096;
/// Requests, and descriptors, that may wait.
const MAX_WAITING: usize = 16;
/// Descriptors taken with one piece of the stream; the kernel closes what is beyond.
const DESCRIPTORS_AT_ONCE: usize = 4;

/// A request that is not taken.
#[derive(Debug, Error)]
pub(super) enum Refusal {
    #[error("the request is wrong: {0}")]
    Wrong(String),
    #[error("a request is longer than {MAX_LINE} bytes")]
    TooLong,
    #[error("{MAX_WAITING} requests wait already")]
    TooMany,
}

/// What has come and was not dealt with.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// The beginning of a line.
    line: Vec<u8>,
    /// Whether the rest of this line is thrown away.
    too_long: bool,
    descriptors: VecDeque<OwnedFd>,
    requests: VecDeque<Request>,
}

impl Inbox {
    /// Takes what the socket has. Whether the other end may send more.
    pub(super) fn receive(
        &mut self,
        socket: impl AsFd,
        mut refuse: impl FnMut(u64, Refusal),
    ) -> bool {
        let mut bytes = [0; MAX_LINE];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_AT_ONCE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = recvmsg(
            socket,
            &mut [IoSliceMut::new(&mut bytes)],
            &mut ancillary,
            RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC,
        );
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                self.descriptors.extend(descriptors);
                self.descriptors.truncate(MAX_WAITING);
            }
        }
        match received {
            Ok(received) if received.bytes == 0 => false,
            Ok(received) => {
                self.take(&bytes[..received.bytes], &mut refuse);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn take(&mut self, bytes: &[u8], refuse: &mut impl FnMut(u64, Refusal)) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (text, complete) = match piece.split_last() {
                Some((b'\n', text)) => (text, true),
                _ => (piece, false),
            };
            if self.line.len() + text.len() > MAX_LINE {
                self.too_long = true;
                self.line.clear();
            } else if !self.too_long {
                self.line.extend_from_slice(text);
            }
            if complete {
                let (line, too_long) = (std::mem::take(&mut self.line), self.too_long);
                self.too_long = false;
                let request = if too_long {
                    Err((0, Refusal::TooLong))
                } else {
                    parse(&line)
                };
                match request {
                    Ok(request) if self.requests.len() == MAX_WAITING => {
                        refuse(request.id, Refusal::TooMany);
                    }
                    Ok(request) => self.requests.push_back(request),
                    Err((id, refusal)) => refuse(id, refusal),
                }
            }
        }
    }

    /// The request that is to be dealt with next.
    pub(super) fn first(&self) -> Option<Request> {
        self.requests.front().copied()
    }

    /// The first request is dealt with.
    pub(super) fn remove_first(&mut self) {
        self.requests.pop_front();
    }

    /// The descriptor that has waited for longest.
    pub(super) fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptors.pop_front()
    }
}

fn parse(line: &[u8]) -> Result<Request, (u64, Refusal)> {
    /// What is left to answer to.
    #[derive(Deserialize)]
    struct Numbered {
        id: u64,
    }
    serde_json::from_slice(line).map_err(|error| {
        let id = serde_json::from_slice(line).map_or(0, |Numbered { id }| id);
        (id, Refusal::Wrong(error.to_string()))
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::net::UnixStream;

    use proptest::prelude::*;
    use rstest::rstest;

    use super::super::protocol::Action;
    use super::*;

    const PAUSE: &[u8] = b"{\"id\":1,\"request\":\"pause\"}\n";

    /// Gives `bytes` to an inbox in pieces of `size`; returns the requests' numbers and what was refused.
    fn given(bytes: &[u8], size: usize) -> (Vec<u64>, Vec<(u64, String)>) {
        let mut inbox = Inbox::default();
        let mut refused = Vec::new();
        for piece in bytes.chunks(size) {
            inbox.take(piece, &mut |id, refusal: Refusal| {
                refused.push((id, refusal.to_string()));
            });
        }
        (
            inbox.requests.iter().map(|request| request.id).collect(),
            refused,
        )
    }

    #[rstest]
    #[case::at_once(1000)]
    #[case::byte_by_byte(1)]
    #[case::in_pieces(7)]
    fn requests_are_lines_however_they_come(#[case] size: usize) {
        let sent = [PAUSE, b"{\"request\":\"dump\",\"id\":2}\n", b"{\"id\":3"].concat();

        let (requests, refused) = given(&sent, size);

        assert_eq!((requests, refused), (vec![1, 2], Vec::new()));
    }

    #[rstest]
    #[case::no_json(b"hello\n".to_vec(), 0, "the request is wrong: expected value at line 1 column 1")]
    #[case::unknown(br#"{"id":5,"request":"fly"}"#.to_vec(), 5, "the request is wrong: unknown variant `fly`")]
    #[case::unknown_field(br#"{"id":5,"request":"pause","x":1}"#.to_vec(), 5, "the request is wrong: unknown field `x`")]
    #[case::endless(vec![b' '; 5000], 0, "a request is longer than 4096 bytes")]
    fn wrong_request_is_refused_and_the_next_one_taken(
        #[case] mut line: Vec<u8>,
        #[case] id: u64,
        #[case] expected: &str,
    ) {
        line.push(b'\n');
        line.extend(PAUSE);

        let (requests, refused) = given(&line, 1000);

        let (found, message) = refused.first().unwrap();
        assert_eq!((*found, requests), (id, vec![1]));
        assert!(message.starts_with(expected), "{message}");
    }

    #[test]
    fn flood_of_requests_is_refused() {
        let (requests, refused) = given(&PAUSE.repeat(20), 1000);

        assert_eq!((requests.len(), refused.len()), (16, 4));
        assert_eq!(refused[0].1, "16 requests wait already");
    }

    #[test]
    fn end_of_the_stream_is_told() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut inbox = Inbox::default();
        theirs.write_all(PAUSE).unwrap();
        drop(theirs);

        let more = [(); 2].map(|()| inbox.receive(&ours, |_, _| {}));

        assert_eq!(more, [true, false]);
        assert_eq!(
            inbox.first().map(|request| request.action),
            Some(Action::Pause)
        );
    }

    #[test]
    fn nothing_is_waited_for() {
        let (ours, _theirs) = UnixStream::pair().unwrap();

        assert!(Inbox::default().receive(&ours, |_, _| {}));
    }

    proptest! {
        #[test]
        fn any_bytes_are_kept_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..10_000), size in 1usize..5000) {
            let mut inbox = Inbox::default();

            for piece in bytes.chunks(size) {
                inbox.take(piece, &mut |_, _| {});
            }

            prop_assert!(inbox.line.len() <= MAX_LINE && inbox.requests.len() <= MAX_WAITING);
        }
    }
}
