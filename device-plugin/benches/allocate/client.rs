//! A kubelet's calls, as grpc-go puts them on its one connection: headers, message and end of a call in
//! one write. (tonic's client makes three writes of them, and the server wakes for each.)

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use http::Request;
use prost::Message;
use tokio::net::UnixStream;

/// The flag that it is not packed, and its length.
const PREFIX: usize = 5;
/// What grpc-go leaves room for.
const WINDOW: u32 = 65_535;

pub(crate) struct Client {
    connection: SendRequest<Bytes>,
}

impl Client {
    /// Connects; the connection is kept by a task of this runtime.
    pub(crate) async fn connect(socket: &std::path::Path) -> Self {
        let stream = UnixStream::connect(socket).await.unwrap();
        let mut builder = h2::client::Builder::new();
        builder.initial_window_size(WINDOW).enable_push(false);
        let (connection, driven) = builder.handshake(stream).await.unwrap();
        tokio::spawn(async move { driven.await.unwrap() });
        Self { connection }
    }

    /// Calls a method of the device plugin's service.
    pub(crate) async fn call<A: Message, B: Message + Default>(
        &mut self,
        method: &str,
        asked: &A,
    ) -> B {
        let request = Request::post(format!("http://localhost/v1beta1.DevicePlugin/{method}"))
            .header("content-type", "application/grpc")
            .header("user-agent", "grpc-go/1.72.2")
            .header("te", "trailers");
        let mut message = BytesMut::with_capacity(PREFIX + asked.encoded_len());
        message.put_u8(0);
        message.put_u32(u32::try_from(asked.encoded_len()).unwrap());
        asked.encode(&mut message).unwrap();
        let (answer, mut stream) =
            self.connection.send_request(request.body(()).unwrap(), false).unwrap();
        stream.send_data(message.freeze(), true).unwrap();
        let mut body = answer.await.unwrap().into_body();
        let mut read = BytesMut::new();
        while let Some(part) = body.data().await {
            let part = part.unwrap();
            body.flow_control().release_capacity(part.len()).unwrap();
            read.extend_from_slice(&part);
        }
        let ended = body.trailers().await.unwrap().expect("a call ends with its status");
        assert_eq!(ended["grpc-status"], "0", "{method}: {ended:?}");
        B::decode(&read[PREFIX..]).unwrap()
    }
}
