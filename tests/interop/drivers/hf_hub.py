"""huggingface_hub's InferenceClient."""

from huggingface_hub import InferenceClient
from report import report


def client(given, path=""):
    return InferenceClient(model=given.url + path, token=given.key, timeout=60)


def pairs(found):
    return [[one.label, one.score] for one in found]


def image_classification(given):
    return pairs(client(given).image_classification(given.data))


def image_classification_of_a_file(given):
    return pairs(client(given).image_classification(given.picture))


def image_classification_with_parameters(given):
    return pairs(client(given).image_classification(given.data, function_to_apply="none", top_k=3))


def zero_shot_image_classification(given):
    return pairs(
        client(given).zero_shot_image_classification(given.data, candidate_labels=given.labels)
    )


def feature_extraction(given):
    return client(given, "/pipeline/feature-extraction").feature_extraction(given.base64).tolist()


report(
    image_classification,
    image_classification_of_a_file,
    image_classification_with_parameters,
    zero_shot_image_classification,
    feature_extraction,
)
