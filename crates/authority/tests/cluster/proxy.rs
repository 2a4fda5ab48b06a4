//! A line between a node and a member of etcd that can be cut, slowed down, or
//! lose the answers to what got through.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::sleep;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Good,
    /// Nothing gets through, and nobody is told; what is on its way arrives when
    /// the line is good again.
    Cut,
    /// Every piece takes this long.
    Slow(Duration),
    /// Questions get through, answers are lost. Connections end with this.
    Deaf,
}

pub struct Proxy {
    pub address: SocketAddr,
    line: watch::Sender<Line>,
    task: JoinHandle<()>,
}

impl Proxy {
    pub async fn open(listen: SocketAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(listen).await.unwrap();
        let address = listener.local_addr().unwrap();
        let line = watch::Sender::new(Line::Good);
        let lines = line.subscribe();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(connect(stream, target, lines.clone()));
            }
        });
        Self {
            address,
            line,
            task,
        }
    }

    pub fn set(&self, line: Line) {
        self.line.send_replace(line);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connect(client: TcpStream, target: SocketAddr, mut line: watch::Receiver<Line>) {
    if until_not_cut(&mut line).await.is_none() {
        return;
    }
    let Ok(server) = TcpStream::connect(target).await else {
        return;
    };
    let (client_read, client_write) = client.into_split();
    let (server_read, server_write) = server.into_split();
    let questions = carry(client_read, server_write, line.clone(), false);
    let answers = carry(server_read, client_write, line, true);
    // Either end closes both.
    tokio::select! { () = questions => {}, () = answers => {} }
}

async fn carry(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut line: watch::Receiver<Line>,
    are_answers: bool,
) {
    let mut buffer = vec![0; 16 * 1024];
    let mut lost_some = false;
    loop {
        let read = tokio::select! {
            read = from.read(&mut buffer) => read,
            changed = line.changed() => {
                if changed.is_err() || lost_some {
                    return;
                }
                continue;
            }
        };
        let Ok(count @ 1..) = read else { return };
        let now = match until_not_cut(&mut line).await {
            Some(now) => now,
            None => return,
        };
        match now {
            Line::Deaf if are_answers => {
                lost_some = true;
                continue;
            }
            Line::Slow(delay) => sleep(delay).await,
            Line::Good | Line::Cut | Line::Deaf => {}
        }
        if lost_some || to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

async fn until_not_cut(line: &mut watch::Receiver<Line>) -> Option<Line> {
    let now = line.wait_for(|line| *line != Line::Cut).await;
    now.ok().map(|line| *line)
}
