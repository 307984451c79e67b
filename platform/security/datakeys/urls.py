from django.urls import path

from security.datakeys import views

urlpatterns = [
    path("v1/data-keys", views.fresh, name="internal-data-keys"),
    path("v1/data-keys/unwrap", views.unwrap, name="internal-unwrap"),
    path("v1/data-keys/publish", views.publish, name="internal-publish"),
]
