// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//! A server that does what it is told, wrong things first of all.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// A request, as it came.
#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    /// Without the query.
    pub path: String,
    pub query: String,
    /// By names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// Requests of this path before.
    pub earlier: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    pub fn range_start(&self) -> Option<usize> {
        let range = self.header("range")?;
        Some(
            range
                .strip_prefix("bytes=")?
                .strip_suffix('-')?
                .parse()
                .unwrap(),
        )
    }
}

/// What to reply, and how.
pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    manner: Manner,
}

enum Manner {
    Whole,
    /// The connection is closed after so many bytes of the body.
    Cut(usize),
    /// Nothing comes any more after so many bytes of the body.
    Stall(usize),
    /// A byte at a time.
    Trickle(Duration),
    /// The body alone, as all there is.
    Raw,
}

impl Reply {
    pub fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.as_ref().to_vec(),
            manner: Manner::Whole,
        }
    }

    pub fn fault(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message}]});
        Self::new(status, body.to_string())
    }

    pub fn raw(bytes: impl AsRef<[u8]>) -> Self {
        Self::new(200, bytes).manner(Manner::Raw)
    }

    pub fn redirect(location: &str) -> Self {
        Self::new(307, "").header("Location", location)
    }

    pub fn challenge(header: &str) -> Self {
        Self::fault(401, "UNAUTHORIZED", "authentication required")
            .header("WWW-Authenticate", header)
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub fn cut(self, after: usize) -> Self {
        self.manner(Manner::Cut(after))
    }

    pub fn stall(self, after: usize) -> Self {
        self.manner(Manner::Stall(after))
    }

    pub fn trickle(self, pause: Duration) -> Self {
        self.manner(Manner::Trickle(pause))
    }

    fn manner(self, manner: Manner) -> Self {
        Self { manner, ..self }
    }

    fn send(self, stream: &mut TcpStream) -> io::Result<()> {
        if matches!(self.manner, Manner::Raw) {
            return stream.write_all(&self.body);
        }
        let mut head = format!(
            "HTTP/1.1 {} Status\r\nContent-Length: {}\r\nConnection: close\r\n",
            self.status,
            self.body.len()
        );
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        match self.manner {
            Manner::Cut(after) => stream.write_all(&self.body[..after]),
            Manner::Stall(after) => {
                stream.write_all(&self.body[..after])?;
                // Until the other side gives up.
                stream.set_read_timeout(Some(Duration::from_secs(20)))?;
                stream.read(&mut [0]).map(|_| ())
            }
            Manner::Trickle(pause) => self.body.chunks(1).try_for_each(|byte| {
                thread::sleep(pause);
                stream.write_all(byte)
            }),
            Manner::Whole | Manner::Raw => stream.write_all(&self.body),
        }
    }
}

/// A server on this machine, without TLS. Its threads end with the test's process.
pub struct Server {
    address: SocketAddr,
    requests: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub fn start(reply: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let (reply, log) = (Arc::new(reply), requests.clone());
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (reply, log) = (reply.clone(), log.clone());
                thread::spawn(move || serve(stream, &*reply, &log));
            }
        });
        Self { address, requests }
    }

    /// Host and port.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// The image `test` of this server.
    pub fn image(&self) -> String {
        format!("{}/test", self.address)
    }

    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    /// Requests whose path holds a text.
    pub fn requests_of(&self, part: &str) -> Vec<Request> {
        let mut requests = self.requests();
        requests.retain(|request| request.path.contains(part));
        requests
    }
}

fn serve(mut stream: TcpStream, reply: &dyn Fn(&Request) -> Reply, log: &Mutex<Vec<Request>>) {
    let mut first = [0];
    // What begins a TLS connection ends this one.
    if !matches!(stream.peek(&mut first), Ok(1)) || first[0] == 0x16 {
        return;
    }
    let Some(mut request) = read(&stream) else {
        return;
    };
    {
        let mut log = log.lock().unwrap();
        request.earlier = log
            .iter()
            .filter(|other| other.path == request.path)
            .count();
        log.push(request.clone());
    }
    // The other side may have gone.
    let _ = reply(&request).send(&mut stream);
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let mut request = Request {
        method: words.next()?.to_owned(),
        ..Request::default()
    };
    let target = words.next()?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    (request.path, request.query) = (path.to_owned(), query.to_owned());
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else {
            break;
        };
        request
            .headers
            .insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = request
        .header("content-length")
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    request.body = String::from_utf8(body).unwrap();
    Some(request)
}
