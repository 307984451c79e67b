from django.urls import path

from security.transport.views import certificate

urlpatterns = [path("v1/certificate", certificate, name="internal-certificate")]
