//! An [`InferenceApi`] as gRPC services, with health and reflection, for a gateway to serve.
//!
//! Connections, time-outs, keys and the reading of requests are the gateway's: it has them for HTTP
//! anyway. What is here begins with a call whose caller is known and ends with its answer.

use std::error::Error;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::{FutureExt, Stream, StreamExt};
use tonic::body::Body;
use tonic::codegen::http;
use tonic::service::Routes;
use tonic::service::interceptor::InterceptedService;
use tonic::{Extensions, Request, Response, Status};
use tonic_health::ServingStatus;

use super::api::{InferenceApi, InferenceError, InferenceEvents};
use super::convert::status;
use crate::public_proto as p;
use crate::public_proto::inference_server::{Inference, InferenceServer};

/// The service's name for health checks.
const SERVICE: &str = "oarlock.v1.Inference";
/// What probes ask, without a key.
const HEALTH_PREFIX: &str = "/grpc.health.v1.Health/";
/// Both versions of reflection.
const REFLECTION_PREFIX: &str = "/grpc.reflection.";
/// Methods that compute.
const COMPUTING: [&str; 2] = ["/oarlock.v1.Inference/Generate", "/oarlock.v1.Inference/Tokenize"];
/// Digits of a time-out at most, as gRPC over HTTP/2 has it.
const MAX_TIMEOUT_DIGITS: usize = 8;

/// The services, and what keeps them up to date.
pub struct InferenceServices {
    /// The services. Every call but those of [`CallKind::Health`] needs [`InferenceApi::Caller`]
    /// among its extensions; one without fails.
    pub routes: Routes,
    /// Takes what [`InferenceApi::health`] says over into the health service, for as long as it is
    /// polled.
    pub health: BoxFuture<'static, ()>,
}

/// What a call is for, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CallKind {
    /// A probe of health: for everybody. One short message.
    Health,
    /// Reflection: a stream of short messages in each direction.
    Reflection,
    /// Looks something up, or is no method at all. One short message.
    Lookup,
    /// Computes. One message.
    Compute,
}

impl CallKind {
    /// Of the call with this path, which is compared byte for byte, as the routes do.
    #[must_use]
    pub fn of(path: &str) -> Self {
        if path.starts_with(HEALTH_PREFIX) {
            Self::Health
        } else if path.starts_with(REFLECTION_PREFIX) {
            Self::Reflection
        } else if COMPUTING.contains(&path) {
            Self::Compute
        } else {
            Self::Lookup
        }
    }
}

/// The services over `api`, which take messages of `max_request_bytes` at most.
///
/// # Errors
/// The descriptors for reflection cannot be read, which is a fault of the build.
pub fn inference_services<A: InferenceApi>(
    api: Arc<A>,
    max_request_bytes: usize,
) -> io::Result<InferenceServices> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let mut is_healthy = Arc::clone(&api).health();
    let health = async move {
        while let Some(is_up) = is_healthy.next().await {
            let status = if is_up { ServingStatus::Serving } else { ServingStatus::NotServing };
            for service in ["", SERVICE] {
                reporter.set_service_status(service, status).await;
            }
        }
    };
    let check = |call: Request<()>| caller::<A>(call.extensions()).map(|_| call);
    let inference =
        InferenceServer::new(Adapter { api }).max_decoding_message_size(max_request_bytes);
    let routes = Routes::new(health_service)
        // Clients in use speak one or the other version.
        .add_service(InterceptedService::new(reflection().build_v1().map_err(broken)?, check))
        .add_service(InterceptedService::new(reflection().build_v1alpha().map_err(broken)?, check))
        .add_service(inference);
    Ok(InferenceServices { routes, health: health.boxed() })
}

/// The whole answer to a call that is refused: a head with the error, and no body.
#[must_use]
pub fn refusal(error: InferenceError) -> http::Response<Body> {
    status(error).into_http()
}

/// An error of a request's body that reaches the client as this one.
#[must_use]
pub fn body_error(error: InferenceError) -> Box<dyn Error + Send + Sync> {
    status(error).into()
}

/// The time that a client gives its call, from the value of `grpc-timeout`; `None` where it is not
/// in gRPC's form.
#[must_use]
pub fn call_timeout(value: &str) -> Option<Duration> {
    let unit = value.chars().last()?;
    let digits = value.strip_suffix(unit)?;
    if digits.len() > MAX_TIMEOUT_DIGITS || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        'H' => Some(Duration::from_secs(count * 3600)),
        'M' => Some(Duration::from_secs(count * 60)),
        'S' => Some(Duration::from_secs(count)),
        'm' => Some(Duration::from_millis(count)),
        'u' => Some(Duration::from_micros(count)),
        'n' => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

fn reflection() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(crate::PUBLIC_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
}

fn broken(error: tonic_reflection::server::Error) -> io::Error {
    io::Error::other(error)
}

/// Who calls. That it is missing is a fault of the gateway, and lets nobody in.
fn caller<A: InferenceApi>(extensions: &Extensions) -> Result<A::Caller, Status> {
    let caller = extensions.get::<A::Caller>().cloned();
    caller.ok_or_else(|| Status::internal("The server failed on this request"))
}

struct Adapter<A> {
    api: Arc<A>,
}

/// Converts events on their way out. Dropped by tonic when the client cancels the call, which drops
/// the generation.
struct Events(InferenceEvents);

impl Stream for Events {
    type Item = Result<p::GenerateResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = self.0.as_mut().poll_next(cx);
        next.map(|event| event.map(|event| event.map(Into::into).map_err(status)))
    }
}

#[tonic::async_trait]
impl<A: InferenceApi> Inference for Adapter<A> {
    type GenerateStream = Events;

    async fn generate(
        &self,
        call: Request<p::GenerateRequest>,
    ) -> Result<Response<Events>, Status> {
        let caller = caller::<A>(call.extensions())?;
        let request = call.into_inner().try_into().map_err(status)?;
        let events = Arc::clone(&self.api).generate(caller, request).await;
        Ok(Response::new(Events(events.map_err(status)?)))
    }

    async fn tokenize(
        &self,
        call: Request<p::TokenizeRequest>,
    ) -> Result<Response<p::TokenizeResponse>, Status> {
        let caller = caller::<A>(call.extensions())?;
        let request = call.into_inner().try_into().map_err(status)?;
        let tokenized = Arc::clone(&self.api).tokenize(caller, request).await;
        Ok(Response::new(tokenized.map_err(status)?.into()))
    }

    async fn list_models(
        &self,
        call: Request<p::ListModelsRequest>,
    ) -> Result<Response<p::ListModelsResponse>, Status> {
        let caller = caller::<A>(call.extensions())?;
        let models = Arc::clone(&self.api).models(caller).await.map_err(status)?;
        Ok(Response::new(models.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_health_service_is_for_everybody() {
        for (path, kind) in [
            ("/grpc.health.v1.Health/Check", CallKind::Health),
            ("/grpc.health.v1.Health", CallKind::Lookup),
            ("/grpc.health.v1.Healthy/Check", CallKind::Lookup),
            ("//grpc.health.v1.Health/Check", CallKind::Lookup),
            ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", CallKind::Reflection),
            (
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                CallKind::Reflection,
            ),
            ("/oarlock.v1.Inference/Generate", CallKind::Compute),
            ("/oarlock.v1.Inference/Tokenize", CallKind::Compute),
            ("/oarlock.v1.Inference/ListModels", CallKind::Lookup),
            ("/oarlock.v1.Inference/", CallKind::Lookup),
            ("", CallKind::Lookup),
        ] {
            assert_eq!(CallKind::of(path), kind, "{path}");
        }
    }

    #[test]
    fn time_outs_are_read_in_each_unit() {
        for (value, expected) in [
            ("2H", Some(Duration::from_hours(2))),
            ("3M", Some(Duration::from_mins(3))),
            ("99999999S", Some(Duration::from_secs(99_999_999))),
            ("250m", Some(Duration::from_millis(250))),
            ("1u", Some(Duration::from_micros(1))),
            ("0n", Some(Duration::ZERO)),
            ("100000000S", None),
            ("S", None),
            ("5", None),
            ("+5S", None),
            ("5s", None),
            ("5é", None),
            ("", None),
        ] {
            assert_eq!(call_timeout(value), expected, "{value}");
        }
    }
}
