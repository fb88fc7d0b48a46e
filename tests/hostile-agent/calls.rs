// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! Attacks by an agent that is called: what it answers, and what it does instead.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;

use coracle_agent_api::messages::WaitProcessResponse;
use coracle_agent_api::ttrpc;
use coracle_agent_api::ttrpc::proto::{
    Codec, MESSAGE_HEADER_LENGTH, MESSAGE_LENGTH_MAX, MESSAGE_TYPE_DATA, MessageHeader, Response,
};
use coracle_agent_api::{AGENT_PORT, AgentError, ErrorKind};
use rustix::system::{RebootCommand, reboot};

use crate::boot::restart;
use crate::{floods, hello, vsock};

/// How much is sent where a flood shall end.
const FLOOD: usize = 256 << 20;
/// What is sent at once.
const PIECE: usize = 64 << 10;
/// The host's ports for the output streams of a container that has no input.
const STREAMS: [u32; 2] = [2001, 2002];
/// A message that is longer than anybody would read, but that hosts take.
const LONG: usize = 48 << 10;
/// A stream of which there is no call.
const NO_CALL: u32 = 0x7fff_ffff;

/// Says hello and takes the host's call; then the attack begins.
pub fn serve(attack: &str) -> io::Result<()> {
    let listener = vsock::listen(AGENT_PORT)?;
    let _alive = hello::say()?;
    let mut host = vsock::accept(&listener)?;
    match attack {
        "hangs up" => drop(host),
        "ends its answers" => {
            vsock::shut(&host, Shutdown::Write)?;
            crate::stay(host);
        }
        "never answers" => crate::stay(host),
        _ => {
            let mut streams = Vec::new();
            loop {
                let Ok(request) = Request::read(&mut host) else {
                    crate::stay(streams);
                    return Ok(());
                };
                request.answer(attack, &mut host, &mut streams)?;
            }
        }
    }
    crate::stay(());
    Ok(())
}

/// A request of the host.
struct Request {
    stream: u32,
    body: Vec<u8>,
}

impl Request {
    fn read(host: &mut File) -> io::Result<Self> {
        let mut header = [0; MESSAGE_HEADER_LENGTH];
        host.read_exact(&mut header)?;
        let header = MessageHeader::from(header);
        let mut body = vec![0; header.length as usize];
        host.read_exact(&mut body)?;
        Ok(Self {
            stream: header.stream_id,
            body,
        })
    }

    /// Whether it calls `method`, whose name is in it as text.
    fn calls(&self, method: &str) -> bool {
        self.body
            .windows(method.len())
            .any(|part| part == method.as_bytes())
    }

    fn answer(&self, attack: &str, host: &mut File, streams: &mut Vec<File>) -> io::Result<()> {
        let text = |length: usize| "\x1b]0;owned\x07".repeat(length / 10);
        let (create, wait) = (self.calls("CreateContainer"), self.calls("WaitProcess"));
        match attack {
            "answers rubbish" => self.respond(host, &[0xff; 4096]),
            "answers in another kind of frame" => {
                let mut header = header(self.stream, MESSAGE_LENGTH_MAX);
                header.type_ = MESSAGE_TYPE_DATA;
                send(host, header, &vec![0x1b; MESSAGE_LENGTH_MAX])
            }
            "answers an endless error" => {
                self.fail(host, ttrpc::Error::Others(text(MESSAGE_LENGTH_MAX / 2)))
            }
            "refuses with an endless reason" => {
                self.fail(host, AgentError::new(ErrorKind::Mount, text(LONG)).into())
            }
            "does not find an endless command" => self.fail(
                host,
                AgentError::new(ErrorKind::CommandNotFound, text(LONG)).into(),
            ),
            "answers 4 GiB" => {
                let mut header = header(self.stream, 0);
                header.length = u32::MAX;
                send(host, header, &[])?;
                for _ in 0..FLOOD / PIECE {
                    host.write_all(&[0; PIECE])?;
                }
                restart()
            }
            "answers what nobody asked" => {
                let body = vec![0; MESSAGE_LENGTH_MAX];
                for _ in 0..FLOOD / body.len() {
                    send(host, header(NO_CALL, body.len()), &body)?;
                }
                restart()
            }
            "resets" if create => restart(),
            "resets after an endless line" if create => {
                floods::line()?;
                restart()
            }
            "turns off" if create => Ok(reboot(RebootCommand::PowerOff)?),
            "dies" if create => std::process::exit(7),
            "dies while its container runs" if wait => std::process::abort(),
            "has a status beyond all" if wait => {
                let answer = WaitProcessResponse {
                    exit_status: 4096,
                    ..WaitProcessResponse::default()
                };
                self.succeed(host, &answer)
            }
            _ => {
                if create {
                    for port in STREAMS {
                        streams.push(vsock::connect(port)?);
                    }
                }
                self.respond(host, &[])
            }
        }
    }

    /// Answers with `message`, which may be anything.
    fn respond(&self, host: &mut File, message: &[u8]) -> io::Result<()> {
        send(host, header(self.stream, message.len()), message)
    }

    fn succeed(&self, host: &mut File, answer: &impl Codec) -> io::Result<()> {
        let mut response = Response::new();
        response.payload = encode(answer)?;
        self.respond(host, &encode(&response)?)
    }

    fn fail(&self, host: &mut File, error: ttrpc::Error) -> io::Result<()> {
        let status = match error {
            ttrpc::Error::RpcStatus(status) => status,
            error => ttrpc::get_status(ttrpc::Code::INTERNAL, error),
        };
        let mut response = Response::new();
        response.set_status(status);
        self.respond(host, &encode(&response)?)
    }
}

fn encode(message: &impl Codec) -> io::Result<Vec<u8>> {
    message
        .encode()
        .map_err(|_| io::ErrorKind::InvalidData.into())
}

fn header(stream: u32, length: usize) -> MessageHeader {
    MessageHeader::new_response(stream, u32::try_from(length).unwrap_or(u32::MAX))
}

fn send(host: &mut File, header: MessageHeader, message: &[u8]) -> io::Result<()> {
    let header: Vec<u8> = header.into();
    host.write_all(&header)?;
    host.write_all(message)
}
