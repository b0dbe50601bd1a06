//! Keys over gRPC.

use std::num::NonZeroU32;

use oarlock_access::Limits;
use oarlock_gateway::GatewayConfig;

use crate::fake_engine::{bytes, script};
use crate::grpc_client::{
    GENERATE, GrpcClient, HEALTH, LIST_MODELS, OK, RESOURCE_EXHAUSTED, TOKENIZE, UNAUTHENTICATED,
    UNIMPLEMENTED, answer, text_request,
};
use crate::keys::access_with_key;
use crate::patience::LONG;
use crate::sockets::{hanging, start};

const REFLECTION: [&str; 2] = [
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];

#[tokio::test]
async fn every_method_but_health_demands_a_key() {
    let (access, secret) = access_with_key(Limits::default());
    let config = GatewayConfig { access, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let client = GrpcClient::new(running.grpc).await;
    let good = format!("Bearer {secret}");
    let methods = [GENERATE, TOKENIZE, LIST_MODELS, REFLECTION[0], REFLECTION[1]];
    for method in methods.into_iter().chain(["/other.Service/Method", "/", "/health"]) {
        for wrong in [None, Some("Bearer oar_0"), Some("Basic x"), Some(secret.as_str())] {
            let answer = client.key(wrong).call(method, b"").await;
            assert_eq!(answer.status, UNAUTHENTICATED, "{method} {wrong:?}");
            assert!(answer.is_head_only && answer.trailers.contains_key("grpc-status-details-bin"));
        }
        let status = client.key(Some(&good)).call(method, b"").await.status;
        assert_ne!(status, UNAUTHENTICATED, "{method}");
        assert_eq!(status == UNIMPLEMENTED, !methods.contains(&method), "{method}");
    }
    assert_eq!(client.key(Some(&good)).call(LIST_MODELS, b"").await.status, OK);
    assert_eq!(client.key(None).call(HEALTH, b"").await.status, OK);
}

#[tokio::test]
async fn who_has_no_key_is_told_before_the_message_comes() {
    let (access, _) = access_with_key(Limits::default());
    let config = GatewayConfig { access, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let mut client = GrpcClient::new(running.grpc).await;
    for method in [GENERATE, TOKENIZE, LIST_MODELS, REFLECTION[0], REFLECTION[1]] {
        let (response, sending) = client.open(method);
        let answer = answer(response).await;
        assert_eq!(answer.status, UNAUTHENTICATED, "{method}");
        assert!(answer.is_head_only && answer.message.contains("Authorization"), "{answer:?}");
        drop(sending);
    }
}

#[tokio::test]
async fn limits_count_each_call_once() {
    let limits = Limits { requests_per_minute: NonZeroU32::new(3), ..Limits::default() };
    let (access, secret) = access_with_key(limits);
    let config = GatewayConfig { access, ..GatewayConfig::default() };
    let running = start(script(bytes("x")), config).await;
    let mut client = GrpcClient::new(running.grpc).await.key(Some(&format!("Bearer {secret}")));
    for _ in 0..5 {
        assert_eq!(client.call(LIST_MODELS, b"").await.status, OK, "it is free");
    }
    for method in [GENERATE, TOKENIZE, GENERATE] {
        assert_eq!(client.call(method, &text_request("ab", 1)).await.status, OK, "{method}");
    }
    let over = client.call(GENERATE, &text_request("ab", 1)).await;
    assert_eq!((over.status.as_str(), over.is_head_only), (RESOURCE_EXHAUSTED, true));
}

#[tokio::test]
async fn a_call_counts_until_it_ends() {
    let limits = Limits { max_parallel: NonZeroU32::new(1), ..Limits::default() };
    let (access, secret) = access_with_key(limits);
    let config = GatewayConfig { access, ..GatewayConfig::default() };
    let running = start(hanging(), config).await;
    let mut client = GrpcClient::new(running.grpc).await.key(Some(&format!("Bearer {secret}")));
    let stream = client.stream(GENERATE, &text_request("ab", 5)).await;
    running.live(1).await;
    let over = client.call(TOKENIZE, &text_request("ab", 1)).await;
    assert_eq!(over.status, RESOURCE_EXHAUSTED);
    drop(stream);
    let again = async { while client.call(TOKENIZE, &text_request("ab", 1)).await.status != OK {} };
    tokio::time::timeout(LONG, again).await.expect("there is room again");
}
