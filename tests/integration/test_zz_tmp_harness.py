import pytest
from tests.harness.grpc_client import GrpcClient, RequestFailed
from tests.harness.http_client import HttpClient, read_metrics, metric
def test_one(server, grpc, http):
    r = grpc.generate("The capital of France is", max_tokens=8, return_finish_reason=True, return_num_output_tokens=True)
    print(r.text, r.finish_reason, r.output_tokens, r.finals, len(r.responses))
    many=[grpc.start(f"{i} is", max_tokens=8) for i in range(16)]
    print([m.result().text for m in many])
    print(http.generate(text_input="The capital of France is", max_tokens=8))
    print([e.get('text_output') for e in http.generate_stream(text_input="The capital of France is", max_tokens=8)])
    with pytest.raises(RequestFailed) as e: grpc.generate("x", max_tokens=0)
    print(e.value)
    with GrpcClient(server.grpc_url, status_errors=True) as g:
        with pytest.raises(RequestFailed) as e: g.generate("x", max_tokens=0)
        print(e.value)
    with pytest.raises(RequestFailed) as e: grpc.infer(grpc.build(text_input="x", max_tokens=1))
    print(e.value)
    print(server.processes(), server.stub_pids(), server.engine_pids())
    print({k[0]:v for k,v in read_metrics(server.metrics_url).items() if 'inflight' in k[0] and 'bucket' not in k[0]})
def test_sim(make_server):
    s = make_server({"a": {"engine_options": {"step_ms": 1.0}}, "b": {}})
    with GrpcClient(s.grpc_url, model="a") as g: print(g.generate("hi", max_tokens=5).text)
    b = make_server(batched=True)
    with GrpcClient(b.grpc_url) as g: print(g.generate("hi", max_tokens=5, batched=True).text)
