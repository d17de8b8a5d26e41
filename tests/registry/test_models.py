"""What is told of models: members that are asked for, tensors, and lists that are filtered and sorted."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import requests
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import BadRequestError, GatedRepoError, HfHubHTTPError
from huggingface_hub.hf_api import ExpandModelProperty_T
from safetensors.numpy import save

from tests.support.registry_process import RegistryProcess, running_registry

WEIGHTS = save({"a": np.zeros((3, 4), np.float32), "b": np.ones(5, np.float16)}, {"format": "pt"})
MORE = save({"c": np.zeros((2, 2), np.float32)})
README = """---
license: mit
library_name: transformers
pipeline_tag: text-generation
datasets: [squad]
base_model: acme/base
base_model_relation: finetune
model-index: [{name: x, results: []}]
---
# A model
"""


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryProcess]:
    """A registry of its own, so that lists can be compared whole."""
    with running_registry(tmp_path_factory.mktemp("shelf")) as process:
        api = HfApi(endpoint=process.endpoint, token=process.token)
        for name, files in {
            "base": {"model.safetensors": WEIGHTS},
            "tuned": {
                "README.md": README.replace("acme/base", f"{process.user}/base").encode(),
                "config.json": b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8}',
                "one.safetensors": WEIGHTS,
                "two.safetensors": MORE,
                "model.safetensors.index.json": json.dumps(
                    {
                        "metadata": {"total_size": 100},
                        "weight_map": {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"},
                    }
                ).encode(),
            },
            "odd": {"model.safetensors": b"no tensors here"},
        }.items():
            repository = api.create_repo(f"{process.user}/{name}").repo_id
            operations = [CommitOperationAdd(path, data) for path, data in files.items()]
            api.create_commit(repository, operations, commit_message="files")
        yield process


@pytest.fixture
def api(shelf: RegistryProcess) -> HfApi:
    return HfApi(endpoint=shelf.endpoint, token=shelf.token)


def test_every_property_that_the_client_knows_can_be_asked_for(shelf: RegistryProcess, api: HfApi) -> None:
    known = list(get_args(ExpandModelProperty_T))
    info = api.model_info(f"{shelf.user}/tuned", expand=known)
    assert info.author == shelf.user
    assert info.base_models == {"relation": "finetune", "models": [{"id": f"{shelf.user}/base"}]}
    assert info.card_data is not None
    assert info.card_data.license == "mit"
    assert info.config == {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    assert info.safetensors is not None
    assert (info.safetensors.parameters, info.safetensors.total) == ({"F32": 16, "F16": 5}, 21)
    assert info.library_name == "transformers"
    assert info.model_index == [{"name": "x", "results": []}]
    assert info.used_storage == sum(len(data) for data in (WEIGHTS, MORE)) + sum(
        sibling.size or 0
        for sibling in api.model_info(f"{shelf.user}/tuned", files_metadata=True).siblings or []
        if not sibling.lfs
    )
    assert (info.gguf, info.inference, info.transformers_info) == (None, None, None)
    assert api.model_info(f"{shelf.user}/base", expand=["childrenModelCount"]).children_model_count == 1
    for name in known:  # alone, too
        only = requests.get(f"{shelf.endpoint}/api/models/{shelf.user}/tuned", params={"expand": name}).json()
        assert set(only) <= {"_id", "id", "modelId", name}
        (listed,) = api.list_models(search="tuned", expand=[name])
        assert listed.id == f"{shelf.user}/tuned"
    for ask in (api.model_info, lambda name, expand: list(api.list_models(search=name, expand=expand))):
        with pytest.raises(HfHubHTTPError, match="no property 'nonsense'") as caught:
            ask(f"{shelf.user}/tuned", expand=["nonsense"])
        assert caught.value.response.status_code == 400


def test_tensors_are_told_from_headers(shelf: RegistryProcess, api: HfApi) -> None:
    single = api.get_safetensors_metadata(f"{shelf.user}/base")
    assert (single.sharded, single.parameter_count) == (False, {"F32": 12, "F16": 5})
    for sharded in (
        api.get_safetensors_metadata(f"{shelf.user}/tuned"),
        api.get_sharded_safetensors_metadata(f"{shelf.user}/tuned"),
    ):
        assert (sharded.sharded, sharded.parameter_count) == (True, {"F32": 16, "F16": 5})
        assert sharded.weight_map == {"a": "one.safetensors", "b": "one.safetensors", "c": "two.safetensors"}
        assert sharded.files_metadata["one.safetensors"].metadata == {"format": "pt"}
        assert sharded.metadata == {"total_size": 100}
    assert api.model_info(f"{shelf.user}/base").safetensors == {"parameters": {"F32": 12, "F16": 5}, "total": 17}
    assert api.model_info(f"{shelf.user}/odd").safetensors is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"1234567",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 100) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        struct.pack("<Q", 4) + b"{{{{",
        struct.pack("<Q", 9) + b'{"a":null}',
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}}'.ljust(60),
        struct.pack("<Q", 60) + b'{"a":{"dtype":"F32","shape":[1e9],"data_offsets":[0]}}'.ljust(60),
    ],
)
def test_files_that_are_no_tensors_are_refused(shelf: RegistryProcess, api: HfApi, content: bytes) -> None:
    name = f"{shelf.user}/odd"
    api.upload_file(path_or_fileobj=content, path_in_repo="model.safetensors", repo_id=name)
    answer = requests.get(f"{shelf.endpoint}/api/models/{name}/safetensors-metadata/model.safetensors")
    assert (answer.status_code, answer.headers["X-Error-Code"]) == (400, "InvalidSafetensors")
    assert api.model_info(name).safetensors is None


@pytest.mark.parametrize(
    ("index", "status"),
    [
        (b"{}", 400),
        (b"nothing", 400),
        (b'{"weight_map": {"a": 1}}', 400),
        (b'{"weight_map": {"a": "../../etc/passwd"}}', 400),
        (b'{"weight_map": {"a": "missing.safetensors"}}', 404),
    ],
)
def test_indexes_that_lead_nowhere_are_refused(shelf: RegistryProcess, api: HfApi, index: bytes, status: int) -> None:
    name, path = f"{shelf.user}/odd", "model.safetensors.index.json"
    api.upload_file(path_or_fileobj=index, path_in_repo=path, repo_id=name)
    answer = requests.get(f"{shelf.endpoint}/api/models/{name}/safetensors-metadata/{path}")
    assert answer.status_code == status


def test_headers_of_a_gated_model_are_for_who_has_access(shelf: RegistryProcess, api: HfApi) -> None:
    api.update_repo_settings(f"{shelf.user}/tuned", gated="manual")
    nobody = HfApi(endpoint=shelf.endpoint, token=False)
    with pytest.raises(GatedRepoError):
        nobody.get_sharded_safetensors_metadata(f"{shelf.user}/tuned")
    assert nobody.model_info(f"{shelf.user}/tuned", expand=["gated"]).gated == "manual"
    api.update_repo_settings(f"{shelf.user}/tuned", gated=False)


def test_models_are_found_by_what_their_cards_say(shelf: RegistryProcess, api: HfApi) -> None:
    tuned = [f"{shelf.user}/tuned"]

    def found(**options: Any) -> list[str]:
        return [model.id for model in api.list_models(**options)]

    assert found(filter=["license:mit", "transformers"]) == tuned
    assert found(trained_dataset="squad") == tuned
    assert found(pipeline_tag="text-generation") == tuned
    assert found(filter=f"base_model:finetune:{shelf.user}/base") == tuned
    assert found(author="nobody") == found(inference="warm") == []
    (full,) = api.list_models(search="TUNED", full=True, cardData=True, fetch_config=True)
    assert full.sha == api.model_info(tuned[0]).sha
    assert full.config == {"architectures": ["LlamaForCausalLM"], "model_type": "llama"}
    assert full.card_data is not None
    assert [sibling.rfilename for sibling in full.siblings or []] == api.list_repo_files(tuned[0])
    for options in ({"num_parameters": "min:1B"}, {"apps": "ollama"}):
        with pytest.raises(BadRequestError, match="does not find models by"):
            found(**options)


def test_lists_go_up_and_down(shelf: RegistryProcess, api: HfApi) -> None:
    down = [model.id for model in api.list_models(sort="created_at")]
    assert down == [f"{shelf.user}/{name}" for name in ("odd", "tuned", "base")]
    url, found = f"{shelf.endpoint}/api/models?sort=createdAt&direction=1&limit=1", []
    while url:
        answer = requests.get(url)
        found += [model["id"] for model in answer.json()]
        url = answer.links.get("next", {}).get("url", "")
    assert found == down[::-1]
    assert requests.get(f"{shelf.endpoint}/api/models?direction=2").status_code == 400


def test_ones_own_repositories_are_told_with_what_they_take(shelf: RegistryProcess, api: HfApi, tmp_path: Path) -> None:
    shelf.add_organization("Takers", shelf.user)
    api.create_repo("Takers/hidden", private=True)
    own = {repository.id: repository for repository in api.list_user_repos()}
    assert set(own) == {f"{shelf.user}/{name}" for name in ("base", "tuned", "odd")}
    assert own[f"{shelf.user}/base"].storage == len(WEIGHTS)
    assert own[f"{shelf.user}/base"].updated_at <= datetime.now(UTC)
    assert [(one.id, one.visibility) for one in api.list_user_repos("takers")] == [("Takers/hidden", "private")]
    stranger = HfApi(endpoint=shelf.endpoint, token=shelf.add_user("stranger-to-takers"))
    with pytest.raises(HfHubHTTPError, match="403"):
        list(stranger.list_user_repos("Takers"))
