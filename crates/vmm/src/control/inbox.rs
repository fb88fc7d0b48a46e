// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause

//! Requests as they arrive: bytes to lines to requests, each with the descriptor that came for it.
//!
//! A descriptor belongs to a request from the moment that the request is read, and goes with it: one that stayed behind
//! when its request was refused or failed would be taken for the next one's.

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde::Deserialize;
use thiserror::Error;

use super::protocol::{Action, Request};

/// The longest request in bytes.
const MAX_LINE: usize = 4096;
/// Requests that may wait, those that give others up, and descriptors of a line that has not ended: so many of each.
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

/// A request that waits its turn.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) request: Request,
    /// What a dump is to be written to.
    pub(super) file: Option<OwnedFd>,
}

/// What has come and was not dealt with.
#[derive(Debug, Default)]
pub(super) struct Inbox {
    /// The beginning of a line.
    line: Vec<u8>,
    /// Whether the rest of this line is thrown away.
    too_long: bool,
    /// The descriptors that came with the beginning of this line.
    descriptors: VecDeque<OwnedFd>,
    requests: VecDeque<Waiting>,
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
        let descriptors = ancillary.drain().flat_map(|message| match message {
            RecvAncillaryMessage::ScmRights(descriptors) => descriptors.collect(),
            _ => Vec::new(),
        });
        let descriptors = descriptors.collect();
        match received {
            Ok(received) if received.bytes == 0 => false,
            Ok(received) => {
                self.take(&bytes[..received.bytes], descriptors, &mut refuse);
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => true,
            Err(_) => false,
        }
    }

    fn take(
        &mut self,
        bytes: &[u8],
        mut descriptors: VecDeque<OwnedFd>,
        refuse: &mut impl FnMut(u64, Refusal),
    ) {
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
                self.end_line(&mut descriptors, refuse);
            }
        }
        // What no line has taken may be for one that has not ended.
        if !self.line.is_empty() || self.too_long {
            self.descriptors.append(&mut descriptors);
            self.descriptors.truncate(MAX_WAITING);
        }
    }

    /// Makes a request of the line. It takes a descriptor that came with its beginning, else the first of those that
    /// came with its end; what else came with its beginning is nobody's.
    fn end_line(
        &mut self,
        with_end: &mut VecDeque<OwnedFd>,
        refuse: &mut impl FnMut(u64, Refusal),
    ) {
        let line = std::mem::take(&mut self.line);
        let mut with_beginning = std::mem::take(&mut self.descriptors);
        let request = match std::mem::take(&mut self.too_long) {
            true => Err((0, Refusal::TooLong)),
            false => parse(&line),
        };
        let request = match request {
            Ok(request) => request,
            Err((id, refusal)) => return refuse(id, refusal),
        };
        let file = match request.action {
            Action::Dump => with_beginning.pop_front().or_else(|| with_end.pop_front()),
            Action::Pause | Action::Resume | Action::Vcpus | Action::Cancel(_) => None,
        };
        let gives_up = |action| matches!(action, Action::Cancel(_));
        let alike = self
            .requests
            .iter()
            .filter(|waiting| gives_up(waiting.request.action) == gives_up(request.action));
        if alike.count() >= MAX_WAITING {
            return refuse(request.id, Refusal::TooMany);
        }
        self.requests.push_back(Waiting { request, file });
    }

    /// The request that is to be dealt with next.
    pub(super) fn first(&self) -> Option<Request> {
        self.requests.front().map(|waiting| waiting.request)
    }

    /// Whether the request of this number, which was taken or is next, is given up.
    pub(super) fn is_given_up(&self, id: u64) -> bool {
        let gives_up = Action::Cancel(id);
        self.requests
            .iter()
            .any(|waiting| waiting.request.action == gives_up)
    }

    /// Takes it, to be dealt with.
    pub(super) fn take_first(&mut self) -> Option<Waiting> {
        self.requests.pop_front()
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
    use std::os::fd::AsRawFd;
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
            inbox.take(piece, VecDeque::new(), &mut |id, refusal: Refusal| {
                refused.push((id, refusal.to_string()));
            });
        }
        let requests = inbox.requests.iter();
        (
            requests.map(|waiting| waiting.request.id).collect(),
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
    fn requests_that_fill_the_inbox_can_be_given_up() {
        let give_up = b"{\"id\":2,\"request\":{\"cancel\":1}}\n";

        let (requests, refused) = given(&[PAUSE.repeat(16), give_up.repeat(20)].concat(), 1000);

        assert_eq!((requests.len(), refused.len()), (32, 4));
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

    /// Gives pieces to an inbox, each with a descriptor if it is marked so; returns the pieces, counted from 0, whose
    /// descriptors the requests have, in their order.
    fn owners(pieces: &[(&str, bool)]) -> Vec<Option<usize>> {
        let mut inbox = Inbox::default();
        let mut numbers = Vec::new();
        for (at, (bytes, has_descriptor)) in pieces.iter().enumerate() {
            let descriptors: VecDeque<OwnedFd> = has_descriptor
                .then(|| std::io::pipe().unwrap().0.into())
                .into_iter()
                .collect();
            numbers.extend(descriptors.iter().map(|fd| (fd.as_raw_fd(), at)));
            inbox.take(bytes.as_bytes(), descriptors, &mut |_, _| {});
        }
        let piece_of = |file: &OwnedFd| {
            let known = numbers.iter().rfind(|(fd, _)| *fd == file.as_raw_fd());
            known.unwrap().1
        };
        let requests = inbox.requests.iter();
        requests
            .map(|waiting| waiting.file.as_ref().map(piece_of))
            .collect()
    }

    const DUMP: &str = "{\"id\":1,\"request\":\"dump\"}\n";
    const WRONG_DUMP: &str = "{\"id\":1,\"request\":\"dump\",\"x\":1}\n";

    #[rstest]
    #[case::at_once(&[(DUMP, true)], &[Some(0)])]
    #[case::in_pieces(&[(&DUMP[..5], true), (&DUMP[5..], false)], &[Some(0)])]
    #[case::with_the_end(&[(&DUMP[..5], false), (&DUMP[5..], true)], &[Some(1)])]
    #[case::none(&[(DUMP, false), (DUMP, true)], &[None, Some(1)])]
    #[case::after_a_wrong_one(&[(WRONG_DUMP, true), (DUMP, true)], &[Some(1)])]
    #[case::after_the_pieces_of_a_wrong_one(
        &[(&WRONG_DUMP[..5], true), (&WRONG_DUMP[5..], false), (DUMP, true)],
        &[Some(2)]
    )]
    #[case::after_a_pause(&[("{\"id\":1,\"request\":\"pause\"}\n", true), (DUMP, true)], &[None, Some(1)])]
    fn descriptor_is_the_requests_that_it_came_with(
        #[case] pieces: &[(&str, bool)],
        #[case] expected: &[Option<usize>],
    ) {
        assert_eq!(owners(pieces), expected);
    }

    #[test]
    fn descriptor_of_an_endless_line_goes_with_it() {
        let end_and_next = format!(" \n{DUMP}");

        let found = owners(&[(&" ".repeat(4096), true), (&end_and_next, true)]);

        assert_eq!(found, [Some(1)]);
    }

    #[test]
    fn descriptor_of_a_request_too_many_goes_with_it() {
        let sixteen = DUMP.repeat(16);
        let mut inbox = Inbox::default();
        inbox.take(sixteen.as_bytes(), VecDeque::new(), &mut |_, _| {});
        let (reader, mut writer) = std::io::pipe().unwrap();

        inbox.take(DUMP.as_bytes(), [reader.into()].into(), &mut |_, _| {});

        let error = writer.write_all(b"x").unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    }

    proptest! {
        #[test]
        fn any_bytes_are_kept_within_bounds(bytes in prop::collection::vec(any::<u8>(), 0..10_000), size in 1usize..5000) {
            let mut inbox = Inbox::default();

            for piece in bytes.chunks(size) {
                inbox.take(piece, VecDeque::new(), &mut |_, _| {});
            }

            prop_assert!(inbox.line.len() <= MAX_LINE && inbox.requests.len() <= 2 * MAX_WAITING);
        }
    }
}
