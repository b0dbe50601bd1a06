//! Keys over gRPC: spoken as bare HTTP/2, as a client would that means no good.

use axum::http::Request;
use bytes::Bytes;
use oarlock_access::Limits;
use oarlock_gateway::{GatewayConfig, Listeners, serve};
use tokio::net::{TcpListener, TcpStream};

use crate::fake_engine::{bytes, client, script};
use crate::keys::access_with_key;

/// An empty protobuf message in gRPC's frame.
const EMPTY_MESSAGE: &[u8] = &[0, 0, 0, 0, 0];
const OK: &str = "0";
const UNAUTHENTICATED: &str = "16";
const UNIMPLEMENTED: &str = "12";

/// Calls a method with an empty message; the status in the answer's trailers.
async fn call(
    client: &mut h2::client::SendRequest<Bytes>,
    path: &str,
    authorization: Option<&str>,
) -> String {
    let mut head = Request::post(format!("http://x{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    if let Some(authorization) = authorization {
        head = head.header("authorization", authorization);
    }
    let (response, mut sending) = client.send_request(head.body(()).unwrap(), false).unwrap();
    sending.send_data(Bytes::from_static(EMPTY_MESSAGE), true).unwrap();
    let response = response.await.unwrap();
    let status = |headers: &axum::http::HeaderMap| {
        headers.get("grpc-status").map(|status| status.to_str().unwrap().to_owned())
    };
    // A call that is refused at once has only a head.
    if let Some(status) = status(response.headers()) {
        return status;
    }
    let mut body = response.into_body();
    while let Some(data) = body.data().await {
        let _ = body.flow_control().release_capacity(data.unwrap().len());
    }
    status(&body.trailers().await.unwrap().unwrap()).unwrap()
}

#[tokio::test]
async fn every_method_but_health_demands_a_key() {
    let (access, secret) = access_with_key(Limits::default());
    let client = client(script(bytes("x")));
    let http = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let grpc = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = grpc.local_addr().unwrap();
    let listeners = Listeners { http, grpc: Some(grpc) };
    let config = GatewayConfig { access, ..GatewayConfig::default() };
    let server = serve(listeners, client.discovery.view(), config, std::future::pending());
    let server = tokio::spawn(server);
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let good = format!("Bearer {secret}");
    for method in [
        "/oarlock.v1.Inference/ListModels",
        "/oarlock.v1.Inference/Generate",
        "/oarlock.v1.Inference/Tokenize",
        "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    ] {
        for wrong in [None, Some("Bearer oar_0"), Some("Basic x"), Some(secret.as_str())] {
            assert_eq!(
                call(&mut sender, method, wrong).await,
                UNAUTHENTICATED,
                "{method} {wrong:?}"
            );
        }
        let status = call(&mut sender, method, Some(&good)).await;
        assert!(status != UNAUTHENTICATED && status != UNIMPLEMENTED, "{method}: {status}");
    }
    assert_eq!(call(&mut sender, "/oarlock.v1.Inference/ListModels", Some(&good)).await, OK);
    assert_eq!(call(&mut sender, "/grpc.health.v1.Health/Check", None).await, OK);
    server.abort();
}
