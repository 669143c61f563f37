//! What `grpcurl` and health probes rely on: a client that knows nothing of us finds the services by reflection, calls
//! one with messages built from what it found, and asks after the controller's health.

use nightshift_tests::{
    cluster::Cluster,
    suite::{Case, case},
};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage, MethodDescriptor, ReflectMessage as _};
use tokio_stream::StreamExt as _;
use tonic::{
    Request, Status,
    client::Grpc,
    codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder},
    transport::{Channel, Endpoint},
};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

pub(crate) fn cases() -> Vec<Case> {
    vec![
        case("generic_client::finds_and_calls_the_control_service_by_reflection", &[], reflection),
        case("generic_client::health_is_served", &[], health),
    ]
}

async fn reflection() {
    let cluster = Cluster::builder("reflection").start().await;
    let channel = connect(cluster.address()).await;
    let services = match ask(&channel, MessageRequest::ListServices(String::new())).await {
        MessageResponse::ListServicesResponse(list) => {
            list.service.into_iter().map(|service| service.name).collect::<Vec<_>>()
        }
        other => panic!("expected a list of services, got {other:?}"),
    };
    for wanted in ["nightshift.v1.ControlService", "nightshift.v1.AgentService", "grpc.health.v1.Health"] {
        assert!(services.iter().any(|name| name == wanted), "{wanted} is not among {services:?}");
    }

    let symbol = MessageRequest::FileContainingSymbol("nightshift.v1.ControlService".to_owned());
    let files = match ask(&channel, symbol).await {
        MessageResponse::FileDescriptorResponse(files) => files.file_descriptor_proto,
        other => panic!("expected descriptors, got {other:?}"),
    };
    let pool = complete_pool(&channel, files).await;
    let service = pool.get_service_by_name("nightshift.v1.ControlService").expect("the service is described");
    let method =
        service.methods().find(|method| method.name() == "GetStatus").expect("GetStatus is described");
    let status = call(&channel, &method).await;
    let controller = status.get_field_by_name("controller").expect("a status has a controller");
    let controller = controller.as_message().expect("the controller is a message").clone();
    let address = controller.get_field_by_name("listen_address").expect("a controller has an address");
    assert_eq!(address.as_str(), Some(cluster.address()));
    cluster.finish().await;
}

async fn health() {
    let cluster = Cluster::builder("health").start().await;
    let mut client = HealthClient::new(connect(cluster.address()).await);
    for service in ["", "nightshift.v1.ControlService", "nightshift.v1.AgentService"] {
        let request = HealthCheckRequest { service: service.to_owned() };
        let answer = client.check(request).await.unwrap_or_else(|status| panic!("\"{service}\": {status}"));
        assert_eq!(answer.into_inner().status(), ServingStatus::Serving, "\"{service}\"");
    }
    let unknown = HealthCheckRequest { service: "no.such.Service".to_owned() };
    let refused = client.check(unknown).await.expect_err("an unknown service has no health");
    assert_eq!(refused.code(), tonic::Code::NotFound);
    cluster.finish().await;
}

async fn connect(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .expect("the address is one")
        .connect()
        .await
        .expect("a serving controller takes connections")
}

async fn ask(channel: &Channel, question: MessageRequest) -> MessageResponse {
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let mut answers = ServerReflectionClient::new(channel.clone())
        .server_reflection_info(tokio_stream::once(request))
        .await
        .expect("reflection is served")
        .into_inner();
    let answer = answers.next().await.expect("a question is answered").expect("the answer is not an error");
    answer.message_response.expect("an answer says something")
}

/// All files the given ones rest on, fetched by name until the pool takes them.
async fn complete_pool(channel: &Channel, files: Vec<Vec<u8>>) -> DescriptorPool {
    let mut known = std::collections::BTreeMap::new();
    let mut open = files;
    while let Some(bytes) = open.pop() {
        let file = prost_reflect::prost_types::FileDescriptorProto::decode(bytes.as_slice())
            .expect("a descriptor can be decoded");
        for dependency in &file.dependency {
            if !known.contains_key(dependency) {
                let question = MessageRequest::FileByFilename(dependency.clone());
                match ask(channel, question).await {
                    MessageResponse::FileDescriptorResponse(more) => open.extend(more.file_descriptor_proto),
                    other => panic!("{dependency} is not described: {other:?}"),
                }
            }
        }
        known.insert(file.name().to_owned(), file);
    }
    let mut pool = DescriptorPool::new();
    pool.add_file_descriptor_protos(known.into_values()).expect("the descriptors fit together");
    pool
}

async fn call(channel: &Channel, method: &MethodDescriptor) -> DynamicMessage {
    let mut client = Grpc::new(channel.clone());
    client.ready().await.expect("the connection is ready");
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let request = Request::new(DynamicMessage::new(method.input()));
    let answer = client
        .unary(request, path.parse().expect("a method's path is one"), DynamicCodec(method.clone()))
        .await
        .expect("the method answers")
        .into_inner();
    assert_eq!(answer.descriptor(), method.output());
    answer
}

/// Messages of one method, known only by their description.
struct DynamicCodec(MethodDescriptor);

impl Codec for DynamicCodec {
    type Encode = DynamicMessage;
    type Decode = DynamicMessage;
    type Encoder = DynamicEncoder;
    type Decoder = DynamicDecoder;

    fn encoder(&mut self) -> Self::Encoder {
        DynamicEncoder
    }

    fn decoder(&mut self) -> Self::Decoder {
        DynamicDecoder(self.0.clone())
    }
}

struct DynamicEncoder;

impl Encoder for DynamicEncoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn encode(&mut self, item: DynamicMessage, buffer: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(buffer).map_err(|error| Status::internal(error.to_string()))
    }
}

struct DynamicDecoder(MethodDescriptor);

impl Decoder for DynamicDecoder {
    type Item = DynamicMessage;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<DynamicMessage>, Status> {
        DynamicMessage::decode(self.0.output(), buffer)
            .map(Some)
            .map_err(|error| Status::internal(error.to_string()))
    }
}
