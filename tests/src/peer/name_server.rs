//! A name server over UDP that says what the test tells it.

use std::{
    collections::BTreeMap,
    net::{IpAddr, SocketAddr, UdpSocket},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{Name, RData, Record, RecordType, rdata::SRV},
};

/// Seconds that its answers hold, unless said otherwise.
const TTL: u32 = 1;
/// How soon it ends when it is told.
const TURN: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Known {
    data: Vec<RData>,
    /// Seconds that answers hold.
    ttl: u32,
    /// When IPv4 addresses were asked for.
    asked: Vec<Instant>,
}

type Records = BTreeMap<String, Known>;

/// A running name server.
#[derive(Debug)]
pub struct NameServer {
    records: Arc<Mutex<Records>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl NameServer {
    /// Answers at an address until dropped.
    pub fn start(address: impl Into<SocketAddr>) -> Self {
        let socket = UdpSocket::bind(address.into()).expect("a UDP socket");
        socket.set_read_timeout(Some(TURN)).expect("a timeout");
        let (records, stop) = (
            Arc::<Mutex<Records>>::default(),
            Arc::<AtomicBool>::default(),
        );
        let (known, told) = (Arc::clone(&records), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            let mut query = [0; 512];
            while !told.load(SeqCst) {
                if let Ok((length, client)) = socket.recv_from(&mut query) {
                    let answer = answer(&query[..length], &mut known.lock().expect("records"));
                    // The one who asked may be gone.
                    let _ = socket.send_to(&answer, client);
                }
            }
        });
        Self {
            records,
            stop,
            thread: Some(thread),
        }
    }

    /// Says that a name stands for these addresses from now on.
    pub fn set(&self, name: &str, addresses: &[IpAddr]) {
        let data = addresses.iter().map(|address| RData::from(*address));
        self.put(name, data.collect(), TTL);
    }

    /// As [`NameServer::set`], for so many seconds.
    pub fn set_for(&self, name: &str, addresses: &[IpAddr], ttl: u32) {
        let data = addresses.iter().map(|address| RData::from(*address));
        self.put(name, data.collect(), ttl);
    }

    /// When it was asked for IPv4 addresses of a name since it was told them.
    pub fn asked(&self, name: &str) -> Vec<Instant> {
        let records = self.records.lock().expect("records");
        let known = records.get(&format!("{name}."));
        known.map_or_else(Vec::new, |known| known.asked.clone())
    }

    /// Says that a service is offered by these hosts: priority, weight, port, name.
    pub fn set_service(&self, name: &str, hosts: &[(u16, u16, u16, &str)]) {
        let data = hosts.iter().map(|(priority, weight, port, host)| {
            let host = Name::from_utf8(host).expect("a name");
            RData::SRV(SRV::new(*priority, *weight, *port, host))
        });
        self.put(name, data.collect(), TTL);
    }

    fn put(&self, name: &str, data: Vec<RData>, ttl: u32) {
        let mut records = self.records.lock().expect("records");
        let asked = Vec::new();
        records.insert(format!("{name}."), Known { data, ttl, asked });
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.stop.store(true, SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answer(query: &[u8], records: &mut Records) -> Vec<u8> {
    let mut answer = Message::from_vec(query).expect("a query").into_response();
    let query = answer.queries.first().expect("a question").clone();
    match records.get_mut(&query.name().to_utf8()) {
        None => answer.metadata.response_code = ResponseCode::NXDomain,
        Some(known) => {
            let wanted = |data: &&RData| match data {
                RData::A(_) => query.query_type() == RecordType::A,
                RData::AAAA(_) => query.query_type() == RecordType::AAAA,
                _ => query.query_type() == RecordType::SRV,
            };
            if query.query_type() == RecordType::A {
                known.asked.push(Instant::now());
            }
            for data in known.data.iter().filter(wanted) {
                let name = query.name().clone();
                answer.add_answer(Record::from_rdata(name, known.ttl, data.clone()));
            }
        }
    }
    answer.to_vec().expect("an answer")
}
